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
// The effects are those of the cores, passed through, and the ones declared in
// this package. Whoever runs a node carries them out in order, each before the
// next, and feeds the answers back as events.
package node
