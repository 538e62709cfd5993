// Has Go's crypto/x509 verify chains for TLS clients: each argument is a file with a leaf first and a root last, in PEM.
// Prints one line for each: the file's name, a space, and "ok" or the reason.
package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
)

func verify(name string) error {
	rest, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var chain []*x509.Certificate
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		chain = append(chain, certificate)
	}
	if len(chain) < 2 {
		return fmt.Errorf("%d certificates", len(chain))
	}
	last := len(chain) - 1
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(chain[last])
	for _, each := range chain[1:last] {
		others.AddCert(each)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: others,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

func main() {
	for _, name := range os.Args[1:] {
		if err := verify(name); err != nil {
			fmt.Println(name, err)
		} else {
			fmt.Println(name, "ok")
		}
	}
}
