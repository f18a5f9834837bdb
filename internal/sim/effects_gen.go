package sim

var effectTypes = []string{
	"cluster.Alarm", "cluster.Announce", "cluster.AskRemoval", "cluster.Claim", "cluster.Entitle", "cluster.Stopped", "cluster.WriteNote",
	"ike.KeyLog", "ike.Send", "ike.SendKeepalive",
	"node.Activate", "node.AddRoute", "node.Claim", "node.Deactivate", "node.Install", "node.Log", "node.Reassert", "node.Release", "node.Remove", "node.RemoveRoute", "node.SetBounds", "node.SetOutbound", "node.SetPeer", "node.SetWindows", "node.TakeWindows",
	"statesync.SendAck", "statesync.SendFrame",
}
