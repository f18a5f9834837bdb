// Package proto holds the .proto files; the generated Go packages lie beside them.
// Generated code is committed. After a change run, from the module's root,
//
//	protoc -I proto --go_out=. --go_opt=module=tandem --go-grpc_out=. --go-grpc_opt=module=tandem proto/*/*.proto
package proto
