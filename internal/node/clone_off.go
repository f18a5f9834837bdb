//go:build !breakpoints

package node

// testBuild is empty but in test builds.
//
//lint:ignore U1000 what uses it is in test builds
type testBuild struct{}
