package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const partUUIDPrefix = "PARTUUID="

// findPartition returns /dev/NAME of the partition with that id, "" if no disk has it now.
func findPartition(id string) string {
	disks, _ := filepath.Glob("/sys/block/*")
	for _, disk := range disks {
		if number := numberOnDisk("/dev/"+filepath.Base(disk), id); number != 0 {
			return partitionNode(disk, number)
		}
	}
	return ""
}

func numberOnDisk(device, id string) int {
	f, err := os.Open(device)
	if err != nil {
		return 0
	}
	defer f.Close()
	return partitionNumber(f, id)
}

// partitionNode finds the node of a disk's partition: sda2, nvme0n1p2, mmcblk0p2.
func partitionNode(disk string, number int) string {
	parts, _ := filepath.Glob(disk + "/*/partition")
	for _, p := range parts {
		if text, err := os.ReadFile(p); err == nil && strings.TrimSpace(string(text)) == fmt.Sprint(number) {
			return "/dev/" + filepath.Base(filepath.Dir(p))
		}
	}
	return ""
}

// Limits of a partition table (UEFI 2.10, 5.3.2): 128 entries of 128 bytes are usual.
const (
	maxEntries   = 1024
	maxEntrySize = 4096
)

// partitionNumber looks for a partition by its id, as the kernel writes it: the GUID of a GPT
// entry, or the MBR's signature and the number, "1f2e3d4c-02". 0 means that there is none.
func partitionNumber(disk io.ReaderAt, id string) int {
	var mbr [512]byte
	if _, err := disk.ReadAt(mbr[:], 0); err != nil || mbr[510] != 0x55 || mbr[511] != 0xaa {
		return 0
	}
	for n := 1; n <= 4; n++ {
		entry := mbr[446+16*(n-1):][:16]
		if entry[4] != 0 && strings.EqualFold(id, fmt.Sprintf("%08x-%02x", binary.LittleEndian.Uint32(mbr[440:]), n)) {
			return n
		}
	}
	for _, block := range []int64{512, 4096} {
		if n := gptNumber(disk, block, id); n != 0 {
			return n
		}
	}
	return 0
}

// gptNumber reads the GUID partition table of a disk with blocks of that size.
func gptNumber(disk io.ReaderAt, block int64, id string) int {
	var header [92]byte
	if _, err := disk.ReadAt(header[:], block); err != nil || !bytes.HasPrefix(header[:], []byte("EFI PART")) {
		return 0
	}
	start := binary.LittleEndian.Uint64(header[72:])
	entries, size := binary.LittleEndian.Uint32(header[80:]), binary.LittleEndian.Uint32(header[84:])
	if start > 1<<40 || entries > maxEntries || size < 128 || size > maxEntrySize {
		return 0
	}
	for i := range int64(entries) {
		var entry [32]byte
		if _, err := disk.ReadAt(entry[:], int64(start)*block+i*int64(size)); err != nil {
			return 0
		}
		if entry != [32]byte{} && strings.EqualFold(id, guid(entry[16:])) {
			return int(i) + 1
		}
	}
	return 0
}

// guid writes the 16 bytes of a GUID; its first three numbers are little-endian.
func guid(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b),
		binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:16])
}
