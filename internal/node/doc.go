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
// A Farm is a member of a farm: a Node for each scope that it owns or stands by for.
// An IKE message goes to the scope that knows its SPIs, or to the member that owns
// that scope (Forward); one that begins something new falls to a scope that is owned
// here. SPIs and the indexes of dialup instances are split among the scopes (ike.Share),
// so that none is given out twice without anybody being asked.
//
// The effects are those of the cores, passed through, and the ones declared in
// this package. Whoever runs a node carries them out in order, each before the
// next, and feeds the answers back as events.
package node
