package timerslack

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandem/internal/needs"
)

func TestWidenReachesEveryThread(t *testing.T) {
	before, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	old, err := strconv.Atoi(strings.TrimSpace(string(before)))
	if err != nil {
		t.Fatal(err)
	}
	const wide = 123 * time.Microsecond
	if err := Widen(wide); errors.Is(err, fs.ErrPermission) {
		needs.Missing(t, "setting another thread's timer slack needs CAP_SYS_NICE")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Widen(time.Duration(old)); err != nil {
			t.Error(err)
		}
	})
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, th := range threads {
		got, err := os.ReadFile("/proc/" + th.Name() + "/timerslack_ns")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || strings.TrimSpace(string(got)) != strconv.Itoa(int(wide)) {
			t.Errorf("thread %s: %s, %v", th.Name(), got, err)
		}
	}
	if got, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err != nil || got != int(wide) {
		t.Errorf("the thread of the test: %d, %v", got, err)
	}
}
