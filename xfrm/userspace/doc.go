// Package userspace carries ESP over TUN interfaces, UDP and raw sockets.
package userspace
