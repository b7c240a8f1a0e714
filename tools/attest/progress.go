package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

// showProgress tells on w how far p is until the returned function is called: with a
// bar, or with the lines "NN%" that BitBake turns into its own.
func showProgress(kind, what string, w io.Writer, p *rootfs.Progress) (stop func(), err error) {
	if kind == "auto" {
		kind = "plain"
		if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			kind = "bar"
		}
	}
	var update func(end bool)
	switch kind {
	case "none":
		return func() {}, nil
	case "bar":
		update = bar(what, w, p)
	case "plain":
		update = plain(what, w, p)
	default:
		return nil, fmt.Errorf("progress %q is unknown: use auto, bar, plain or none", kind)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				update(false)
			case <-done:
				update(true)
				return
			}
		}
	}()
	return func() { close(done); <-ended }, nil
}

// bar is for a person at a terminal.
func bar(what string, w io.Writer, p *rootfs.Progress) func(bool) {
	var b *progressbar.ProgressBar
	options := []progressbar.Option{
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true),
		progressbar.OptionShowCount(),
		progressbar.OptionSetWidth(30),
		progressbar.OptionClearOnFinish(),
	}
	return func(end bool) {
		total := p.TotalBytes.Load()
		if total == 0 {
			return // a bar without a length has a goroutine of its own
		}
		if b == nil {
			b = progressbar.NewOptions64(total, options...)
		}
		b.Describe(fmt.Sprintf("%s %d/%d files", what, p.Files.Load(), p.TotalFiles.Load()))
		b.Set64(min(p.Bytes.Load(), total))
		if end {
			b.Finish()
		}
	}
}

// Of lines in a log: how many percent lie between two, and when the first may come.
const (
	plainStep  = 10
	plainDelay = 2 * time.Second
)

// plain is for a log: few lines, none of them for a run that is over at once.
func plain(what string, w io.Writer, p *rootfs.Progress) func(bool) {
	next := int64(plainStep)
	start := time.Now()
	return func(end bool) {
		total := p.TotalBytes.Load()
		if total == 0 || end || time.Since(start) < plainDelay {
			return
		}
		if percent := min(100, p.Bytes.Load()*100/total); percent >= next {
			fmt.Fprintf(w, "%s: %d%% (%d of %d files)\n", what, percent, p.Files.Load(), p.TotalFiles.Load())
			next = percent/plainStep*plainStep + plainStep
		}
	}
}
