// Package node composes the pure cores into one gateway: the IKE engine, the pair
// authority, the journal and the replica, the ledger of nonce ranges, and the
// rules between them. Event in → effects out; here the pure part ends.
//
// One walk, IKE_AUTH: HandleIKE → ike.Engine → Persist → Journal → SendFrame …
// HandleAck → Committed → ike.Engine → Install, Send.
//
// One walk, takeover: HandleLoss → Pair → Own → Activate (one flip: the SAs, their
// bounds, routes and interfaces are there already), Claim, Engine.Resume.
//
// VClusters is a node of a pair with virtual clusters: a Node for each, with a Pair of its
// scope. What guardian, heartbeats and streams say is split by scope (cluster.Peer.Of), what
// the scopes say of themselves goes out together; SPIs are split as in a Farm, so that an
// IKE message's tells its virtual cluster, and what begins something new falls to the one
// whose shared address it came to. Neither knows anything of the other ones.
//
// In an FGCP group of three or four the same VClusters have a Slot each instead of a Pair,
// and the members' log decides (vclusters_group.go). The member that leads the log ranks
// who is there by FGCP's election (cluster.Rank), as heartbeats tell it, and proposes who
// owns what nobody owns, who stands by in which order, and who is promised the next epoch.
// When to hand over is the owner's to say, as a Pair's.
//
// A Farm is a member of a farm: a Node for each scope that it owns or stands by for.
// An IKE message goes to the scope that knows its SPIs, or to the member that owns
// that scope (Forward); one that begins something new falls to a scope that is owned
// here. SPIs and the indexes of dialup instances are split among the scopes (ike.Share),
// so that none is given out twice without anybody being asked.
//
// A tunnel of a Farm follows its traffic (farm_moves.go). Each scope's owner hears from
// the data plane through which member an SA's authenticated packets keep arriving. It
// takes the tunnel out of its data plane with the exact windows (Detach), and shelves it
// by a record of its own scope. When that is committed nobody can act on the tunnel, and
// it is offered, by letter, to the owner of a slot of the other member, again until that
// answers; that owner adopts it by a record of its slot, and says so. Whoever succeeds
// either owner in between goes on with what the records say. What is left on the shelf
// are names: SPIs and the instance's index are not given out anew, and packets are sent
// on. A scope that another member may have gone on with, behind a cut, gives nothing away.
//
// What the LAN sends arrives at any member of a Farm, and has no SPI (farm_lan.go). Each
// scope counts by which inner prefixes its clients are reached. Its owner tells the other
// members (SendLAN, HandleLAN): number and digest of the set, the whole of it to whoever
// holds another one, changes from then on. They route the prefixes (AddRoute) and lead
// packets that no SA takes to the scope (Lead).
//
// The effects are those of the cores, passed through, and the ones declared in
// this package. Whoever runs a node carries them out in order, each before the
// next, and feeds the answers back as events.
package node
