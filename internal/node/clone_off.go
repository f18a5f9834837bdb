//go:build !breakpoints

package node

// testBuild is empty but in test builds.
type testBuild struct{}
