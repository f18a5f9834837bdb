package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Nodes of the example with two sites: each is a pair (FGCP) that is one member of a
// farm (FGSP), and has one port at each router. The witness is at a third place.
//
//	          ┌─ A ─┬─ port2 A1 port3 ─┬─ A ─┐
//	DC_Router ┤     └─ port2 A2 port3 ─┘     ├ LAN_Router
//	          └─ B ─┬─ port2 B1 port3 ─┬─ B ─┘
//	                └─ port2 B2 port3 ─┘
//
// What is shared in a site, the routers' next hops 192.168.125.254 and 172.31.125.254
// (126 at B) and the address on lb1, the active node has.
var SiteMembers = []string{"A1", "A2", "B1", "B2"}

const witnessNode = "witness"

// defaultSites are the defaults of the example with two sites.
func defaultSites() FarmSetup {
	f := defaultFarm()
	f.Sites, f.Sync = true, len(SiteMembers)
	f.Charon, f.PerCharon, f.Tandem, f.Processes = 2, 2, 28, 2
	return f
}

// isSites says whether an example is one of two sites.
func isSites(example string) bool {
	_, err := os.Stat(filepath.Join(example, SiteMembers[0]+".conf"))
	return err == nil
}

// farmOf are the defaults of an example.
func farmOf(example string) FarmSetup {
	if isSites(example) {
		return defaultSites()
	}
	return defaultFarm()
}

// hop is a next hop of the routers: a member, or the nodes of a site of which one has
// the shared addresses.
type hop struct {
	name    string
	members []string
}

func (f *FarmSetup) members() []string {
	if f.Sites {
		return SiteMembers
	}
	return Members
}

// allHops are those that the routers have ports for.
func (f *FarmSetup) allHops() (all []hop) {
	for _, m := range f.members() {
		if n := len(all); f.Sites && n > 0 && all[n-1].name == m[:1] {
			all[n-1].members = append(all[n-1].members, m)
		} else if f.Sites {
			all = append(all, hop{m[:1], []string{m}})
		} else {
			all = append(all, hop{m, []string{m}})
		}
	}
	return all
}

// hops are the names of those that have traffic when all is well.
func (f *FarmSetup) hops() (names []string) {
	for _, h := range f.allHops() {
		if f.Sites || slices.Contains(f.synced(), h.name) {
			names = append(names, h.name)
		}
	}
	return names
}

func (f *FarmSetup) hopIndex(name string) int {
	return slices.IndexFunc(f.allHops(), func(h hop) bool { return h.name == name })
}

// hopOf is the one that a member belongs to.
func (f *FarmSetup) hopOf(member string) hop {
	for _, h := range f.allHops() {
		if slices.Contains(h.members, member) {
			return h
		}
	}
	return hop{}
}

// gone says that nobody is left behind a next hop when this member is hurt.
func (r *farmRun) gone(h hop, victim string) bool {
	return !slices.ContainsFunc(h.members, func(m string) bool { return m != victim && !r.members[m].lost })
}

// entry is the member that has the traffic of a next hop.
func (r *farmRun) entry(ctx context.Context, name string) (*Gateway, error) {
	if !r.f.Sites {
		return r.members[name], nil
	}
	var errs []error
	for _, m := range r.f.allHops()[r.f.hopIndex(name)].members {
		if r.members[m].lost {
			continue
		}
		s, err := r.ask(ctx, m)
		if err == nil && s.here() {
			return r.members[m], nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(append(errs, fmt.Errorf("nobody has the addresses of site %s", name))...)
}

// here says that the member has the shared addresses of its site.
func (s *FarmStatus) here() bool {
	for _, x := range s.Sites {
		if x.Here {
			return true
		}
	}
	return false
}

// startWitness starts the voter at the third place.
func (r *farmRun) startWitness() (err error) {
	if !r.f.Sites || r.witness != nil && r.witness.Running() {
		return nil
	}
	argv := []string{r.d.bin, "witness", "--config", filepath.Join(r.topo.Dir, witnessNode+".conf")}
	r.witness, err = r.topo.Start(witnessNode, witnessNode, argv, nil)
	return err
}

// prepareWitness writes its configuration.
func (r *farmRun) prepareWitness() error {
	if !r.f.Sites {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(r.o.Example, witnessNode+".conf"))
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Join(r.topo.Dir, witnessNode), 0o700),
		os.WriteFile(filepath.Join(r.topo.Dir, witnessNode+".conf"), []byte(r.topo.fill(string(text))), 0o600))
}

// learnMACs lets captures tell the nodes of a site apart.
func (r *farmRun) learnMACs() error {
	if !r.f.Sites {
		return nil
	}
	r.macs = map[[6]byte]string{}
	for _, m := range r.f.members() {
		for _, dev := range []string{"port2", "port3"} {
			mac, err := r.topo.hardwareAddress(m, dev)
			if err != nil {
				return err
			}
			r.macs[[6]byte(mac)] = m
		}
	}
	return nil
}

// named has a frame's port named by the member at the other end.
func (r *farmRun) named(f Frame) Frame {
	if len(r.macs) == 0 || len(f.Data) < 12 {
		return f
	}
	mac := [6]byte(f.Data[:6])
	if f.FromNode {
		mac = [6]byte(f.Data[6:12])
	}
	if m, ok := r.macs[mac]; ok {
		f.Port = m
	}
	return f
}

// doLoseSite takes all hosts of a site away at once.
func (r *farmRun) doLoseSite(ctx context.Context, s Step) error {
	name := s.Args[0]
	if name == "random" {
		active := r.routes.active()
		name = active[r.rng.IntN(len(active))]
	}
	g, err := r.entry(ctx, name)
	if err != nil {
		return err
	}
	var all []*Gateway
	for _, m := range r.f.hopOf(g.Name).members {
		if !r.members[m].lost {
			all = append(all, r.members[m])
		}
	}
	at, err := r.topo.lose(r.d, all...)
	if err != nil {
		return err
	}
	r.say("loss of site %s, where %s was active: links cut, guardians and daemons gone", name, g.Name)
	return r.fault(ctx, faultSite, at, g.Name)
}

func (r *farmRun) doLoseWitness(context.Context, Step) error {
	r.say("the witness is gone")
	return r.witness.Kill()
}

// siteVerbs are the steps of the example with two sites.
func siteVerbs() map[string]verb[*farmRun] {
	v := farmVerbsOf(SiteMembers)
	f := defaultSites()
	sites := f.hops()
	v["lose-site"] = verb[*farmRun]{"random|" + strings.Join(sites, "|"), wantOneOf(append([]string{"random"}, sites...)...), (*farmRun).doLoseSite}
	v["lose-witness"] = verb[*farmRun]{"", wantNone, (*farmRun).doLoseWitness}
	return v
}
