package vramfit_test

import (
	"fmt"
	"log"
	"time"

	"vramfit"
)

// The example of the README; it is compiled, and run by hand where there is a model.gguf.
func Example() {
	model, err := vramfit.Open("model.gguf")
	if err != nil {
		log.Fatal(err)
	}
	gpus, err := vramfit.ParseGPUs("k80x2")
	if err != nil {
		log.Fatal(err)
	}
	placement, err := vramfit.Plan(model, gpus, vramfit.Settings{NCtx: vramfit.Ptr[uint32](8192)})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(placement.Devices[0].RequiredBytes, placement.Command)
}

// The example of this module's README, as above.
func ExampleHost() {
	model, err := vramfit.Open("model.gguf")
	if err != nil {
		log.Fatal(err)
	}
	gpus, err := vramfit.ParseGPUs("k80x2")
	if err != nil {
		log.Fatal(err)
	}
	host, err := vramfit.OpenHost("gpu-box", gpus, vramfit.HostOptions{Journal: "ledger.redb"})
	if err != nil {
		log.Fatal(err)
	}
	load := vramfit.Load{Model: "qwen3:8b", Holder: "loader-1", Lease: time.Minute, Stays: true}
	reserved, err := host.Reserve(model, load, vramfit.Settings{})
	if err != nil {
		log.Fatal(err) // errors.Is(err, vramfit.FullNow): try again later
	}
	// Here the engine is started with reserved.Placement.Command; nil says that it took what was reserved.
	if err := host.Commit(reserved.ID, nil); err != nil {
		log.Fatal(err)
	}
	// Here it has ended.
	if err := host.Release(reserved.ID); err != nil {
		log.Fatal(err)
	}
}
