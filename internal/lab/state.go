package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
)

// stateRoot holds one folder for each lab that stands.
const stateRoot = "/run/tandem-lab"

// State says what a lab has made on this machine. It is written before the
// first namespace exists, so that whatever a killed lab left can be found.
type State struct {
	ID         string            `json:"id"`
	Created    time.Time         `json:"created"`
	PID        int               `json:"pid"`       // of the process that runs it; 0: a lab left standing by `up`
	PIDStart   uint64            `json:"pid_start"` // that process's start time in clock ticks: a pid alone may have been reused
	Namespaces []string          `json:"namespaces"`
	Dir        string            `json:"dir"` // logs, sockets, generated files
	Sockets    map[string]string `json:"sockets,omitempty"`
	Binary     string            `json:"binary,omitempty"`
	Example    string            `json:"example,omitempty"`
}

func stateDir(id string) string { return filepath.Join(stateRoot, id) }

func (s *State) save() error {
	if err := os.MkdirAll(stateDir(s.ID), 0o700); err != nil {
		return err
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(stateDir(s.ID), "state.tmp")
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(stateDir(s.ID), "state.json"))
}

// abandoned says that the process which ran the lab is gone. A lab that stands
// by intent is never abandoned.
func (s *State) abandoned() bool {
	if s.PID == 0 {
		return false
	}
	f, err := procStat(s.PID)
	if err != nil || f[0] == "Z" || f[0] == "X" { // ended, though nobody has asked how
		return true
	}
	start, err := processStart(s.PID)
	return err != nil || start != s.PIDStart
}

// States lists the labs of this machine by ID.
func States() ([]State, error) {
	dirs, err := os.ReadDir(stateRoot)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []State
	for _, d := range dirs {
		text, err := os.ReadFile(filepath.Join(stateRoot, d.Name(), "state.json"))
		if err != nil {
			continue // being made or being removed
		}
		var s State
		if err := json.Unmarshal(text, &s); err != nil || s.ID != d.Name() {
			return nil, fmt.Errorf("%s/%s/state.json cannot be read: %v", stateRoot, d.Name(), err)
		}
		all = append(all, s)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].ID < all[j].ID })
	return all, nil
}

// remove takes away everything the state names: processes, namespaces (and
// with them links and sockets), files.
func (s *State) remove() error {
	var errs []error
	for _, ns := range s.Namespaces {
		if err := emptyNetns(ns); err != nil {
			errs = append(errs, err)
		}
	}
	for _, ns := range s.Namespaces {
		if err := dropNetns(ns); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // the state file stays: `down` may try again
	}
	return os.RemoveAll(stateDir(s.ID))
}

// removeAbandoned cleans up after labs whose process was killed.
func removeAbandoned() error {
	all, err := States()
	if err != nil {
		return err
	}
	var errs []error
	for i := range all {
		if all[i].abandoned() {
			errs = append(errs, all[i].remove())
		}
	}
	return errors.Join(errs...)
}

// processStart returns a process's start time in clock ticks since boot.
func processStart(pid int) (uint64, error) {
	f, err := procStat(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// procStat returns the fields of /proc/PID/stat from the third (state) on: the
// second, the command name, may itself hold blanks and brackets.
func procStat(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	i := strings.LastIndexByte(string(text), ')')
	f := strings.Fields(string(text)[i+1:])
	if i < 0 || len(f) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat: unknown layout", pid)
	}
	return f, nil
}
