// Package tidy holds no code: its tests keep the house in order. They check who
// imports whom, what the pure packages may not call, and how long files grow.
package tidy
