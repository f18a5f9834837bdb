package daemon

import (
	"strings"

	"tandem/ike"
)

// assigned shows what a configuration payload assigned, to the peer or to us.
func (j *gatewayJSON) assigned(a *ike.Assigned) {
	if len(a.Addrs) == 0 {
		return
	}
	j.AssignedTo = "peer"
	if a.Client {
		j.AssignedTo = "self"
	}
	j.Assigned, j.AssignedDNS, j.AssignedSubnets, j.AssignedDomains = texts(a.Addrs), texts(a.DNS), texts(a.Subnets), a.Domains
}

func (s *session) printAssigned(j *gatewayJSON) {
	for _, a := range j.Assigned {
		family := "IPv4"
		if strings.Contains(a, ":") {
			family = "IPv6"
		}
		if j.AssignedTo == "self" {
			s.printf("received %s address: %s\n", family, a)
		} else {
			s.printf("assigned %s address: %s\n", family, a)
		}
	}
	for _, x := range []struct {
		what string
		are  []string
	}{{"DNS", j.AssignedDNS}, {"domain", j.AssignedDomains}, {"subnet", j.AssignedSubnets}} {
		if len(x.are) > 0 {
			s.printf("received %s: %s\n", x.what, strings.Join(x.are, " "))
		}
	}
}
