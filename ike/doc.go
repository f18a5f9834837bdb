package ike

// The engine in files, in the order in which a message meets them:
//
//	datagram.go     a datagram to its IKE SA, the window, the row of its exchange
//	init.go         IKE_SA_INIT, both roles; cookie.go before it costs state
//	match.go        which phase 1 an address and an identity belong to
//	auth.go         IKE_AUTH, both roles; INITIAL_CONTACT; duplicates
//	eap.go          IKE_AUTH by EAP: eap_server.go, eap_client.go; its methods: eap_mschap.go,
//	                eap_tls.go, eap_radius.go
//	overlay.go      what Tandems tell each other there: interface address, network-id
//	child.go        Child SAs in IKE_AUTH and CREATE_CHILD_SA; select.go chooses
//	rekey_child.go  REKEY_SA and its collisions; rekey_ike.go the same for IKE SAs
//	informational.go, delete.go, dpd.go
//	retransmit.go   what an IKE SA does when time passes, and what it does next
//	lifetime.go     when an SA is rekeyed and when it ends
//	negotiate.go    when a tunnel begins by itself or for traffic
//	record.go       an IKE SA to and from its record
//	restore.go      Apply, Resume, Suspend; unite.go after a split
//
// What an IKE SA does next follows from its state alone (nextWork): DELETEs that
// are owed, its own end, rekeys that are due, Child SAs that are missing, a
// probe. So a successor that has the record goes on where its predecessor died,
// without a list of tasks beside it.
