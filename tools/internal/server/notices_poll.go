package server

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/notice"
	"github.com/meta-attest/meta-attest/tools/internal/store"
)

const (
	// patience is how long a device waits for notices, and up to a quarter longer.
	patience = 40 * time.Second
	// noticesPage is how many notices it gets at a time.
	noticesPage = 32
	// noticesPageSize bounds them, in bytes; one alone is smaller.
	noticesPageSize = 512 << 10
	// lookPause is between two looks into the database, of each replica.
	lookPause = time.Second
	// lookTime bounds one look.
	lookTime = 20 * time.Second
	// maxPages and maxEnvelopes bound what is kept for the next device that asks the same.
	maxPages     = 256
	maxEnvelopes = 1024
)

// waiter is a device that waits for notices of its group.
type waiter struct {
	device, group string
	wake          chan struct{} // of one
	gone          chan struct{} // closed when the device asks again
}

type pageKey struct {
	group string
	after int64
}

// page is the answer to all devices of a group that know the same notices.
type page struct {
	once sync.Once
	body []json.RawMessage
	err  error
}

// alarms wakes devices that wait. What happened is in the database, which one goroutine
// looks into: a replica hears of it whoever wrote it, and devices that wait cost nothing.
type alarms struct {
	most int

	mu        sync.Mutex
	live      bool  // somebody looks into the database
	last      int64 // alarm that is known
	devices   map[string]*waiter
	groups    map[string]map[*waiter]bool
	pages     map[pageKey]*page // of what is known
	envelopes map[int64]json.RawMessage
	closed    chan struct{}
}

func newAlarms(most int) *alarms {
	return &alarms{most: most, devices: map[string]*waiter{}, groups: map[string]map[*waiter]bool{}, pages: map[pageKey]*page{},
		envelopes: map[int64]json.RawMessage{}, closed: make(chan struct{})}
}

// enter notes that a device waits; an earlier request of it waits no longer.
func (a *alarms) enter(device, group string) (*waiter, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.devices[device]
	if old == nil && len(a.devices) >= a.most {
		return nil, false
	}
	if old != nil {
		close(old.gone)
		a.remove(old)
	}
	w := &waiter{device, group, make(chan struct{}, 1), make(chan struct{})}
	a.devices[device] = w
	if a.groups[group] == nil {
		a.groups[group] = map[*waiter]bool{}
	}
	a.groups[group][w] = true
	return w, true
}

func (a *alarms) leave(w *waiter) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remove(w)
}

func (a *alarms) remove(w *waiter) {
	if a.devices[w.device] == w {
		delete(a.devices, w.device)
	}
	delete(a.groups[w.group], w)
	if len(a.groups[w.group]) == 0 {
		delete(a.groups, w.group)
	}
}

func (a *alarms) waiting() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.devices)
}

// announce makes alarms known that were written since the last look.
func (a *alarms) announce(ctx context.Context, st *store.Store) error {
	last, err := st.LastAlarm(ctx)
	if err != nil {
		return err
	}
	a.mu.Lock()
	from, live := a.last, a.live
	a.mu.Unlock()
	if live && last == from {
		return nil
	}
	groups, err := st.AlarmedGroups(ctx, from, last)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.live, a.last, a.pages = true, last, map[pageKey]*page{}
	for _, g := range groups {
		for w := range a.groups[g] {
			select {
			case w.wake <- struct{}{}:
			default:
			}
		}
	}
	return nil
}

// watchAlarms looks for alarms until ctx ends; then nobody waits any more.
func (s *Server) watchAlarms(ctx context.Context) {
	defer close(s.alarms.closed)
	tick := time.NewTicker(lookPause)
	defer tick.Stop()
	for {
		if err := s.alarms.announce(ctx, s.Store); err != nil && ctx.Err() == nil {
			s.Log.Error("look for alarms", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// page returns the notices of a group after one, signed.
func (s *Server) page(ctx context.Context, key pageKey) ([]json.RawMessage, error) {
	a := s.alarms
	a.mu.Lock()
	p := a.pages[key]
	if p == nil {
		p = &page{}
		if a.live && len(a.pages) < maxPages {
			a.pages[key] = p
		}
	}
	a.mu.Unlock()
	p.once.Do(func() {
		// It is for others too, who may stay longer.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTime)
		defer cancel()
		if p.body, p.err = s.envelopes(ctx, key); p.err != nil {
			a.mu.Lock()
			defer a.mu.Unlock()
			delete(a.pages, key)
		}
	})
	return p.body, p.err
}

func (s *Server) envelopes(ctx context.Context, key pageKey) ([]json.RawMessage, error) {
	found, err := s.Store.Alarms(ctx, key.group, key.after, noticesPage)
	if err != nil {
		return nil, err
	}
	all, size := make([]json.RawMessage, 0, len(found)), 0
	for _, one := range found {
		b, err := s.envelope(ctx, one)
		if err != nil {
			return nil, err
		}
		if size += len(b); size > noticesPageSize {
			break
		}
		all = append(all, b)
	}
	return all, nil
}

// envelope signs a notice, once.
func (s *Server) envelope(ctx context.Context, one store.Alarm) (json.RawMessage, error) {
	a := s.alarms
	a.mu.Lock()
	b := a.envelopes[one.Seq]
	a.mu.Unlock()
	if b != nil {
		return b, nil
	}
	e, err := s.notice(ctx, one)
	if err != nil {
		return nil, err
	}
	if b, err = notice.Sign(e, s.Notices.Key, s.Notices.Cert); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.envelopes) >= maxEnvelopes {
		clear(a.envelopes)
	}
	a.envelopes[one.Seq] = b
	return b, nil
}

// pollNotices answers a device with the notices of its group after a number: at once if
// there are some, else when there is one, or with none after a while.
func (s *Server) pollNotices(c *call) error {
	if err := c.version("3"); err != nil {
		return err
	}
	after, err := c.number("after")
	if err != nil {
		return err
	}
	if s.Notices.Key == nil {
		return fail(http.StatusNotFound, "no_notices", "this verifier tells devices nothing of others")
	}
	group, err := s.Store.Group(c.Context(), c.who.device)
	if err != nil {
		return err
	}
	w, ok := s.alarms.enter(c.who.device, group)
	if !ok {
		return later(http.StatusServiceUnavailable, "busy", "too many devices wait for notices", 30*time.Second+jitter(30*time.Second))
	}
	defer s.alarms.leave(w)
	timer := time.NewTimer(patience + jitter(patience/4))
	defer timer.Stop()
	for waiting := true; ; {
		all, err := s.page(c.Context(), pageKey{group, after})
		if err != nil {
			return err
		}
		if len(all) > 0 || !waiting {
			return c.json(http.StatusOK, map[string]any{"notices": all})
		}
		select {
		case <-w.wake:
		case <-timer.C:
			waiting = false
		case <-w.gone:
			waiting = false
		case <-s.alarms.closed:
			waiting = false
		case <-c.Context().Done():
			return c.Context().Err()
		}
	}
}
