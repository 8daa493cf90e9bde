// Package vramfit says what a GGUF model takes on each GPU under llama.cpp, to the byte, where every layer should go,
// and keeps a ledger of who holds which bytes.
//
// It is a thin layer over the C interface (crates/capi). Build the library first and say where it is:
//
//	cargo build --release -p vramfit-capi
//	CGO_LDFLAGS=-L$PWD/target/release go test ./...   # in bindings/go
//
// Everything may be used from several goroutines at once. Close frees what C holds; what is forgotten is freed by the
// garbage collector.
package vramfit

/*
#cgo CFLAGS: -I${SRCDIR}/../../crates/capi/include
#cgo linux LDFLAGS: -l:libvramfit_c.a -lm -ldl -lpthread
#cgo !linux LDFLAGS: -lvramfit_c
#include "vramfit.h"
*/
import "C"

// Version of the library.
func Version() string { return C.GoString(C.vramfit_version()) }

func init() {
	if C.vramfit_abi_version() != C.VRAMFIT_ABI_VERSION {
		panic("vramfit: the library and the header it was built with are of different versions")
	}
}
