package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

func newKernel() *cobra.Command {
	c := &cobra.Command{
		Use:   "kernel",
		Short: "See that a kernel is what it was configured to be, and sign its modules",
		Long: `kernel has what a build of Linux needs to end in a kernel that refuses what is not
signed: that the symbols of a configuration fragment are there, that the CA is compiled
in and nothing else is trusted, and that modules carry signatures.`,
	}
	c.AddCommand(newKernelConfig(), newKernelCA(), newKernelCertificates(), newKernelModules())
	return c
}

// readBounded reads a file that is not larger than most bytes.
func readBounded(file string, most int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > most {
		return nil, fmt.Errorf("%s: larger than %d bytes", file, most)
	}
	return text, nil
}
