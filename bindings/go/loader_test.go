package vramfit_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"vramfit"
)

// standIn plays llama-server: it is started with the placement's command, says what it took on each GPU, answers a line
// with a line, and ends when its input does.
func standIn(took string) {
	command := strings.Join(os.Args[1:], " ")
	if !strings.Contains(command, "-m ") || !strings.Contains(command, "-ngl ") {
		fmt.Println("not a llama-server command:", command)
		os.Exit(1)
	}
	fmt.Println(took)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println("answer to", lines.Text())
	}
}

func TestMain(m *testing.M) {
	if took := os.Getenv("VRAMFIT_STAND_IN_TAKES"); took != "" {
		standIn(took)
		return
	}
	os.Exit(m.Run())
}

// loader loads models on a host, one process each.
type loader struct {
	host  *vramfit.Host
	mutex sync.Mutex
	runs  map[uint64]*engine
}

type engine struct {
	process *exec.Cmd
	in      func(string) (string, error)
	stop    func() error
}

// load plans and reserves in one step, unloads what has to leave, starts the engine and commits what that took.
func (l *loader) load(model *vramfit.Model, name string, settings vramfit.Settings) (uint64, error) {
	stale := &vramfit.Stale{Idle: time.Minute, Start: 10 * time.Minute}
	// Called without --sleep-idle-seconds it never unloads by itself: it stays.
	load := vramfit.Load{Model: name, Holder: "loader", Lease: time.Minute, Stale: stale, Stays: true}
	reserved, err := l.host.Reserve(model, load, settings)
	if err != nil {
		return 0, err
	}
	for _, id := range reserved.Leaving {
		if err := l.unload(id); err != nil {
			return 0, err
		}
	}
	run, took, err := start(reserved)
	if err != nil {
		return 0, errors.Join(err, l.host.Release(reserved.ID))
	}
	if err := l.host.Commit(reserved.ID, took); err != nil {
		return 0, errors.Join(err, run.stop(), l.host.Release(reserved.ID))
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.runs[reserved.ID] = run
	return reserved.ID, nil
}

// unload ends the engine first, and tells the ledger after.
func (l *loader) unload(id uint64) error {
	l.mutex.Lock()
	run := l.runs[id]
	delete(l.runs, id)
	l.mutex.Unlock()
	if run == nil {
		return fmt.Errorf("no engine of reservation %d", id)
	}
	return errors.Join(run.stop(), l.host.Release(id))
}

func (l *loader) ask(id uint64, question string) (string, error) {
	if err := l.host.BeginRequest(id); err != nil {
		return "", err
	}
	answer, err := l.runs[id].in(question)
	return answer, errors.Join(err, l.host.EndRequest(id))
}

// start runs the stand-in with the placement's command; it says that it took a little less than was planned.
func start(reserved *vramfit.Reserved) (*engine, []vramfit.Share, error) {
	var says []string
	for _, share := range reserved.Shares {
		says = append(says, fmt.Sprintf("%d:%d", share.GPU, share.Bytes-4096))
	}
	process := exec.Command(os.Args[0], reserved.Placement.Command[1:]...)
	process.Env = append(os.Environ(), "VRAMFIT_STAND_IN_TAKES="+strings.Join(says, " "))
	in, err := process.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := process.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := process.Start(); err != nil {
		return nil, nil, err
	}
	lines := bufio.NewReader(out)
	run := &engine{process: process}
	run.in = func(question string) (string, error) {
		fmt.Fprintln(in, question)
		answer, err := lines.ReadString('\n')
		return strings.TrimSpace(answer), err
	}
	run.stop = func() error { return errors.Join(in.Close(), process.Wait()) }
	said, err := lines.ReadString('\n')
	if err != nil {
		return nil, nil, errors.Join(err, run.stop())
	}
	var took []vramfit.Share
	for _, word := range strings.Fields(said) {
		var share vramfit.Share
		if _, err := fmt.Sscanf(word, "%d:%d", &share.GPU, &share.Bytes); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("the engine says %q", said), run.stop())
		}
		took = append(took, share)
	}
	return run, took, nil
}

func fixture(name string) string { return filepath.Join("..", "..", "fixtures", "gguf", name) }

func must[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func TestLoader(t *testing.T) {
	small := must[*vramfit.Model](t)(vramfit.Open(fixture("qwen3-8b.Q4_K_M.gguf")))
	gpus := must[*vramfit.GPUs](t)(vramfit.ParseGPUs("2xrtx3060"))
	journal := filepath.Join(t.TempDir(), "ledger.redb")
	options := vramfit.HostOptions{IDs: []string{"GPU-a", "GPU-b"}, Journal: journal}
	host := must[*vramfit.Host](t)(vramfit.OpenHost("gpu-box", gpus, options))
	clock := time.UnixMilli(1_000_000)
	host.Now = func() time.Time { return clock }
	l := &loader{host: host, runs: map[uint64]*engine{}}
	free := func() [2]uint64 {
		now := must[*vramfit.GPUs](t)(host.GPUs())
		return [2]uint64{now.FreeBytes(0), now.FreeBytes(1)}
	}
	before := free()
	settings := vramfit.Settings{NCtx: vramfit.Ptr[uint32](32768)}

	first := must[uint64](t)(l.load(small, "qwen3:8b", settings))
	second := must[uint64](t)(l.load(small, "qwen3:8b again", settings))
	after := free()
	if after[0] >= before[0] || after[1] >= before[1] {
		t.Fatalf("each has a GPU of its own: %v of %v", after, before)
	}
	if answer := must[string](t)(l.ask(first, "hello")); answer != "answer to hello" {
		t.Fatal(answer)
	}

	// Both are in use: a third has to wait, and is told so.
	_, err := l.load(small, "third", settings)
	if !errors.Is(err, vramfit.FullNow) {
		t.Fatalf("%v", err)
	}
	var failed *vramfit.Error
	if !errors.As(err, &failed) || !failed.CanRetry || !strings.Contains(string(failed.JSON), "decision") {
		t.Fatalf("%+v", failed)
	}

	// Later they are stale: the one that has not been used for longest leaves.
	clock = clock.Add(30 * time.Second)
	if _, err := l.ask(second, "still here"); err != nil {
		t.Fatal(err)
	}
	clock = clock.Add(45 * time.Second)
	if err := host.Renew(second); err != nil {
		t.Fatal(err)
	}
	third := must[uint64](t)(l.load(small, "third", settings))
	if l.runs[first] != nil || l.runs[second] == nil || l.runs[third] == nil {
		t.Fatalf("the first leaves, the second stays: %v", l.runs)
	}
	if violations := must[[]vramfit.Violation](t)(host.Audit()); len(violations) > 0 {
		t.Fatalf("%+v", violations)
	}

	// The journal has it all after a restart.
	state := string(must[json.RawMessage](t)(host.State()))
	host.Close()
	host = must[*vramfit.Host](t)(vramfit.OpenHost("gpu-box", gpus, options))
	l.host = host
	if again := string(must[json.RawMessage](t)(host.State())); again != state {
		t.Fatalf("%s\n%s", again, state)
	}
	for _, id := range []uint64{second, third} {
		if err := l.unload(id); err != nil {
			t.Fatal(err)
		}
	}
	if free() != before {
		t.Fatalf("%v of %v", free(), before)
	}
	if err := host.Release(second); !errors.Is(err, vramfit.UnknownReservation) {
		t.Fatalf("%v", err)
	}
}

func TestPlacementIsWhatTheCommandLinePrints(t *testing.T) {
	program := os.Getenv("ESTIMATE")
	if program == "" {
		t.Fatal("ESTIMATE has to name the program estimate; scripts/go.sh does it")
	}
	path := fixture("gemma-3-12b.Q4_K_M.gguf")
	model := must[*vramfit.Model](t)(vramfit.Open(path))
	gpus := must[*vramfit.GPUs](t)(vramfit.ParseGPUs("k80x2"))
	settings := vramfit.Settings{NCtx: vramfit.Ptr[uint32](32768), TypeK: "q8_0", TypeV: "q8_0", FlashAttention: "on"}
	placement := must[*vramfit.Placement](t)(vramfit.Plan(model, gpus, settings))
	flags := []string{path, "--gpus", "k80x2", "-c", "32768", "-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on", "--json"}
	printed, err := exec.Command(program, flags...).Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var expected, seen any
	if err := errors.Join(json.Unmarshal(printed, &expected), json.Unmarshal(placement.JSON, &seen)); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(expected) != fmt.Sprint(seen) {
		t.Fatalf("%s\n%s", printed, placement.JSON)
	}

	var document struct {
		Verdict string
		Command []string
		Devices []struct {
			ID            string
			ModelBytes    uint64 `json:"model_bytes"`
			ContextBytes  uint64 `json:"context_bytes"`
			ComputeBytes  uint64 `json:"compute_bytes"`
			RequiredBytes uint64 `json:"required_bytes"`
			Layers        []uint32
		}
	}
	if err := json.Unmarshal(printed, &document); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(document.Command) != fmt.Sprint(placement.Command) || len(document.Devices) != len(placement.Devices) {
		t.Fatalf("%v", placement.Command)
	}
	for i, device := range placement.Devices {
		report := document.Devices[i]
		of := map[vramfit.Term]uint64{}
		var sum uint64
		for _, term := range device.Terms {
			of[term.Term] = term.Bytes
			sum += term.Bytes
		}
		is := []any{device.ID, of[vramfit.Weights], of[vramfit.Context], of[vramfit.Compute], sum, device.RequiredBytes, len(device.Layers)}
		want := []any{report.ID, report.ModelBytes, report.ContextBytes, report.ComputeBytes, report.RequiredBytes, report.RequiredBytes, len(report.Layers)}
		if fmt.Sprint(is) != fmt.Sprint(want) {
			t.Fatalf("%v is not %v", is, want)
		}
	}
	if text := must[string](t)(placement.Text(0)); !strings.Contains(text, "CUDA0") {
		t.Fatal(text)
	}
	if explanation := must[json.RawMessage](t)(placement.Explain()); !strings.Contains(string(explanation), "peaks") {
		t.Fatal(string(explanation))
	}
	placement.Close()
	model.Close()
	gpus.Close()
}

// unknown is a model under a name that nobody has heard of.
func unknown(t *testing.T) *vramfit.Model {
	known := must[[]byte](t)(os.ReadFile(fixture("llama-3.2-1b.Q4_K_M.gguf")))
	path := filepath.Join(t.TempDir(), "lxama.gguf")
	if err := os.WriteFile(path, bytes.ReplaceAll(known, []byte("llama"), []byte("lxama")), 0o600); err != nil {
		t.Fatal(err)
	}
	return must[*vramfit.Model](t)(vramfit.Open(path))
}

func TestErrors(t *testing.T) {
	model := must[*vramfit.Model](t)(vramfit.Open(fixture("qwen3-8b.Q4_K_M.gguf")))
	gpus := must[*vramfit.GPUs](t)(vramfit.NewGPUs(vramfit.GPU{TotalBytes: 2 << 30, FreeBytes: 2 << 30, ComputeCapabilityMajor: 8, ComputeCapabilityMinor: 6}))
	host := must[*vramfit.Host](t)(vramfit.OpenHost("small", gpus, vramfit.HostOptions{}))
	second := func(_ any, err error) error { return err }
	check := func(err error, status vramfit.Status, words string) {
		t.Helper()
		if !errors.Is(err, status) || !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v is not %d with %q", err, status, words)
		}
	}
	check(second(vramfit.Open("no such file")), vramfit.OpenFailed, "no such file")
	check(second(vramfit.ParseGPUs("rtx9999")), vramfit.GPUsInvalid, "rtx9999")
	check(second(vramfit.ProbeGPUs("auto", "no such program", time.Second)), vramfit.GPUsInvalid, "no such program")
	check(second(vramfit.NewGPUs(vramfit.GPU{})), vramfit.GPUsInvalid, "compute capability")
	check(second(vramfit.Plan(model, gpus, vramfit.Settings{TypeK: "q6_K"})), vramfit.SettingsInvalid, "no cache can be of type")
	check(second(vramfit.Plan(model, gpus, vramfit.Settings{NGPULayers: "some"})), vramfit.SettingsInvalid, "all or auto")
	check(second(vramfit.Plan(model, gpus, vramfit.Settings{TypeV: "q8_0", FlashAttention: "off"})), vramfit.Refused, "llama.cpp refuses")
	check(second(vramfit.Plan(unknown(t), gpus, vramfit.Settings{SplitMode: "tensor"})), vramfit.NotModelled, "'lxama', which is not known: use -sm layer")
	check(second(host.Reserve(model, vramfit.Load{Model: "m", Holder: "h"}, vramfit.Settings{})), vramfit.NeverFits, "does not fit")
	check(host.Commit(7, nil), vramfit.UnknownReservation, "#7")
	check(second(host.Adopt(vramfit.Loaded{Model: "m", Holder: "h", Shares: []vramfit.Share{{GPU: 1, Bytes: 1}}})), vramfit.UnknownGPU, "CUDA1")
	id := must[uint64](t)(host.Adopt(vramfit.Loaded{Model: "m", Holder: "h", Shares: []vramfit.Share{{GPU: 0, Bytes: 3 << 30}}}))
	violations := must[[]vramfit.Violation](t)(host.Audit())
	if len(violations) != 1 || violations[0].ReservedBytes != 3<<30 || violations[0].Reservations[0] != id {
		t.Errorf("%+v", violations)
	}
	if err := host.Observe([]uint64{1 << 30}); err != nil {
		t.Error(err)
	}
	if _, err := host.Reap([]uint64{1 << 30}); err != nil {
		t.Error(err)
	}
	if schema := must[json.RawMessage](t)(vramfit.SettingsSchema()); !strings.Contains(string(schema), "n_gpu_layers") {
		t.Error(string(schema))
	}
	if vramfit.Version() == "" {
		t.Error("no version")
	}
}

// The ledger against the driver and against what engines say they hold.
func TestFacts(t *testing.T) {
	const gib = 1 << 30
	gpus := must[*vramfit.GPUs](t)(vramfit.ParseGPUs("16GiB"))
	host := must[*vramfit.Host](t)(vramfit.OpenHost("box", gpus, vramfit.HostOptions{}))
	now := time.UnixMilli(1000)
	host.Now = func() time.Time { return now }
	free := func() uint64 { return must[*vramfit.GPUs](t)(host.GPUs()).FreeBytes(0) }
	capacity := free()
	loaded := func(model string, bytes uint64, lease time.Duration) vramfit.Loaded {
		shares := []vramfit.Share{{GPU: 0, Bytes: bytes}}
		return vramfit.Loaded{Model: model, Holder: "loader", Shares: shares, Lease: lease}
	}
	var a, b uint64
	// While the driver is asked, of which others have 2 GiB, 4 GiB are loaded that are not in its answer.
	err := host.ObserveWith(func() ([]uint64, error) {
		a = must[uint64](t)(host.Adopt(loaded("a", 4*gib, 0)))
		return []uint64{capacity - 2*gib}, nil
	})
	if err != nil || free() != capacity-6*gib {
		t.Fatalf("%v, %d free of %d", err, free(), capacity)
	}
	b = must[uint64](t)(host.Adopt(loaded("b", gib, time.Second)))
	held := []vramfit.Held{{ID: a, Shares: []vramfit.Share{{GPU: 0, Bytes: 5 * gib}}}, {ID: 99, Shares: []vramfit.Share{{GPU: 0, Bytes: 1}}}}
	found := must[vramfit.Differences](t)(host.Reconcile("loader", held))
	expected := vramfit.Differences{Resized: []uint64{a}, Unknown: []uint64{99}, Missing: []uint64{b}}
	if !reflect.DeepEqual(found, expected) || free() != capacity-8*gib {
		t.Fatalf("%+v, %d free of %d", found, free(), capacity)
	}
	if _, err := host.Reconcile("loader", []vramfit.Held{{ID: a, Shares: []vramfit.Share{{GPU: 3, Bytes: 1}}}}); !errors.Is(err, vramfit.UnknownGPU) {
		t.Fatal(err)
	}
	refused := errors.New("no driver")
	if err := host.ObserveWith(func() ([]uint64, error) { return nil, refused }); err != refused {
		t.Fatal(err)
	}
	// Its lease runs out, and the driver says that nothing is left of it.
	for i := 0; i < 4; i++ {
		now = now.Add(time.Second / 4)
		if gone := must[json.RawMessage](t)(host.Expire()); string(gone) != "[]" {
			t.Fatal(string(gone))
		}
	}
	now = now.Add(time.Millisecond)
	reaped, err := host.ReapWith(func() ([]uint64, error) { return []uint64{capacity - 7*gib}, nil })
	if err != nil || !strings.Contains(string(reaped), fmt.Sprintf(`"id":%d`, b)) || free() != capacity-7*gib {
		t.Fatalf("%v, %s, %d free of %d", err, reaped, free(), capacity)
	}
	// Released, and free with the next figure.
	if err := errors.Join(host.Release(a), host.Observe([]uint64{capacity - 2*gib})); err != nil || free() != capacity-2*gib {
		t.Fatalf("%v, %d free of %d", err, free(), capacity)
	}
	if _, err := host.Adopt(loaded("m", 1, time.Microsecond)); err == nil {
		t.Fatal("a lease that ends before it begins")
	}
}

func TestSettingsHaveEveryKey(t *testing.T) {
	var schema struct{ Properties map[string]any }
	if err := json.Unmarshal(must[json.RawMessage](t)(vramfit.SettingsSchema()), &schema); err != nil {
		t.Fatal(err)
	}
	fields := reflect.TypeOf(vramfit.Settings{})
	for i := 0; i < fields.NumField(); i++ {
		key, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
		if schema.Properties[key] == nil {
			t.Errorf("there is no setting %s", key)
		}
		delete(schema.Properties, key)
	}
	for key := range schema.Properties {
		t.Errorf("Settings has no %s", key)
	}
}

// A sum of more than 64 bits is shown as the most that has them, as over HTTP.
func TestAuditOfMoreThanThereCanBe(t *testing.T) {
	gpus := must[*vramfit.GPUs](t)(vramfit.ParseGPUs("8GiB"))
	host := must[*vramfit.Host](t)(vramfit.OpenHost("box", gpus, vramfit.HostOptions{}))
	for i := 0; i < 2; i++ {
		shares := []vramfit.Share{{GPU: 0, Bytes: math.MaxUint64}}
		must[uint64](t)(host.Adopt(vramfit.Loaded{Model: "m", Holder: "h", Shares: shares}))
	}
	violations := must[[]vramfit.Violation](t)(host.Audit())
	if len(violations) != 1 || violations[0].ReservedBytes != math.MaxUint64 || len(violations[0].Reservations) != 2 {
		t.Errorf("%+v", violations)
	}
}

// Goroutines over one host: nothing is promised twice, and all is free at the end.
func TestGoroutinesShareAHost(t *testing.T) {
	model := must[*vramfit.Model](t)(vramfit.Open(fixture("qwen2.5-0.5b.Q4_K_M.gguf")))
	gpus := must[*vramfit.GPUs](t)(vramfit.ParseGPUs("2x4GiB"))
	host := must[*vramfit.Host](t)(vramfit.OpenHost("box", gpus, vramfit.HostOptions{}))
	var group sync.WaitGroup
	failures := make(chan error, 8*5)
	granted := make(chan uint64, 8*5)
	for g := 0; g < 8; g++ {
		group.Add(1)
		go func(g int) {
			defer group.Done()
			for i := 0; i < 5; i++ {
				load := vramfit.Load{Model: fmt.Sprint(g, i), Holder: "goroutine"}
				reserved, err := host.Reserve(model, load, vramfit.Settings{})
				if errors.Is(err, vramfit.FullNow) || errors.Is(err, vramfit.FullPending) {
					continue
				}
				if err == nil {
					granted <- reserved.ID
					err = errors.Join(host.Commit(reserved.ID, nil), host.Release(reserved.ID))
				}
				violations, audit := host.Audit()
				if len(violations) > 0 {
					audit = fmt.Errorf("%+v", violations)
				}
				if err := errors.Join(err, audit); err != nil {
					failures <- err
				}
			}
		}(g)
	}
	group.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	if len(granted) == 0 {
		t.Error("nothing was ever granted")
	}
	now := must[*vramfit.GPUs](t)(host.GPUs())
	fresh := must[*vramfit.Host](t)(vramfit.OpenHost("fresh", gpus, vramfit.HostOptions{}))
	empty := must[*vramfit.GPUs](t)(fresh.GPUs())
	if now.FreeBytes(0) != empty.FreeBytes(0) || now.FreeBytes(1) != empty.FreeBytes(1) {
		t.Errorf("%d and %d are free", now.FreeBytes(0), now.FreeBytes(1))
	}
}

// Less is taken: others have gone, or the engine sleeps and may load again.
func TestSleepers(t *testing.T) {
	const gib = 1 << 30
	model := must[*vramfit.Model](t)(vramfit.Open(fixture("qwen3-8b.Q4_K_M.gguf")))
	for _, stays := range []bool{false, true} {
		gpus := must[*vramfit.GPUs](t)(vramfit.ParseGPUs("80GiB"))
		host := must[*vramfit.Host](t)(vramfit.OpenHost("box", gpus, vramfit.HostOptions{}))
		now := time.UnixMilli(1000)
		host.Now = func() time.Time { return now }
		free := func() uint64 { return must[*vramfit.GPUs](t)(host.GPUs()).FreeBytes(0) }
		capacity := free()
		observe := func(taken uint64) {
			if err := host.Observe([]uint64{capacity - taken}); err != nil {
				t.Error(err)
			}
		}
		observe(20 * gib)
		shares := []vramfit.Share{{GPU: 0, Bytes: 10 * gib}}
		old := vramfit.Loaded{Model: "old", Holder: "engine", Shares: shares, Lease: time.Second, Stays: stays, Key: "found"}
		must[uint64](t)(host.Adopt(old))
		if _, err := host.Adopt(old); !errors.Is(err, vramfit.KeyTaken) {
			t.Error(err)
		}
		observe(20 * gib)
		observe(10 * gib)
		held := map[bool]uint64{false: 20 * gib, true: 10 * gib}[stays]
		if free() != capacity-held {
			t.Errorf("%d free", free())
		}
		// Somebody knows that they have gone.
		if err := host.OthersHold(0, 0); err != nil || free() != capacity-10*gib {
			t.Errorf("%v, %d free", err, free())
		}
		if err := host.OthersHold(1, 0); !errors.Is(err, vramfit.UnknownGPU) {
			t.Error(err)
		}
		// Of what others take now the driver says no more.
		observe(30 * gib)
		if err := host.ForgetFigure(0); err != nil || free() != capacity-10*gib {
			t.Errorf("%v, %d free", err, free())
		}
		load := vramfit.Load{Model: "m", Holder: "h", Stays: stays, Key: "load"}
		settings := vramfit.Settings{NCtx: vramfit.Ptr[uint32](4096)}
		must[*vramfit.Reserved](t)(host.Reserve(model, load, settings))
		if _, err := host.Reserve(model, load, settings); !errors.Is(err, vramfit.KeyTaken) {
			t.Error(err)
		}
		if gone := must[json.RawMessage](t)(host.Expire()); string(gone) != "[]" {
			t.Error(string(gone))
		}
		// Nobody could renew its lease while the host was away: it begins anew, and runs out once.
		now = now.Add(time.Hour)
		for i := 0; i < 5; i++ {
			if gone := must[json.RawMessage](t)(host.Expire()); string(gone) != "[]" {
				t.Error(string(gone))
			}
			now = now.Add(time.Second / 4)
		}
		if gone := must[json.RawMessage](t)(host.Expire()); !strings.Contains(string(gone), `"model":"old"`) {
			t.Error(string(gone))
		}
	}
}
