package vramfit_test

import (
	"fmt"
	"log"

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
