// Package tools holds the programs of meta-attest and the packages that they are made
// of. Its own test says which of them may import which.
package tools
