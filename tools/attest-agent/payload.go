package main

import (
	"syscall"

	"github.com/meta-attest/meta-attest/tools/internal/payload"
)

// makeSecretsFolder makes the folder for payloads as root, for the user that the agent
// becomes; keep opens it then.
func (a *agent) makeSecretsFolder(uid, gid int) error {
	return payload.MakeFolder(a.config.get("secrets_dir"), uid, gid)
}

// keep writes a payload into the folder in memory.
func (a *agent) keep(p *payload.Payload) error {
	dir := a.config.get("secrets_dir")
	if err := payload.MakeFolder(dir, syscall.Getuid(), syscall.Getgid()); err != nil {
		return err
	}
	folder, err := payload.OpenFolder(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	if err := folder.Put(p); err != nil {
		return err
	}
	a.say("payload %s is in %s", p.Name, folder.Path(p.Name))
	if p.Run != "" && a.config.get("secrets_execute") == "" {
		a.say("%s of payload %s is not run: secrets_execute is not set", p.Run, p.Name)
	}
	return nil
}
