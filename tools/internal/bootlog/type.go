package bootlog

import "fmt"

// Type says what an event measured (PFP 10.4.1, table 27).
type Type uint32

// Types of event, named as the specification does without EV_ and EV_EFI_.
const (
	PrebootCert          Type = 0x0
	PostCode             Type = 0x1
	NoAction             Type = 0x3
	Separator            Type = 0x4
	Action               Type = 0x5
	EventTag             Type = 0x6
	CRTMContents         Type = 0x7
	CRTMVersion          Type = 0x8
	CPUMicrocode         Type = 0x9
	PlatformConfigFlags  Type = 0xa
	TableOfDevices       Type = 0xb
	CompactHash          Type = 0xc
	IPL                  Type = 0xd
	IPLPartitionData     Type = 0xe
	NonhostCode          Type = 0xf
	NonhostConfig        Type = 0x10
	NonhostInfo          Type = 0x11
	OmitBootDeviceEvents Type = 0x12
	PostCode2            Type = 0x13

	VariableDriverConfig    Type = 0x80000001
	VariableBoot            Type = 0x80000002
	BootServicesApplication Type = 0x80000003
	BootServicesDriver      Type = 0x80000004
	RuntimeServicesDriver   Type = 0x80000005
	GPTEvent                Type = 0x80000006
	EFIAction               Type = 0x80000007
	PlatformFirmwareBlob    Type = 0x80000008
	HandoffTables           Type = 0x80000009
	PlatformFirmwareBlob2   Type = 0x8000000a
	HandoffTables2          Type = 0x8000000b
	VariableBoot2           Type = 0x8000000c
	GPTEvent2               Type = 0x8000000d
	HCRTMEvent              Type = 0x80000010
	VariableAuthority       Type = 0x800000e0
	SPDMFirmwareBlob        Type = 0x800000e1
	SPDMFirmwareConfig      Type = 0x800000e2
	SPDMDevicePolicy        Type = 0x800000e3
	SPDMDeviceAuthority     Type = 0x800000e4
)

var typeNames = map[Type]string{
	PrebootCert: "EV_PREBOOT_CERT", PostCode: "EV_POST_CODE", NoAction: "EV_NO_ACTION", Separator: "EV_SEPARATOR",
	Action: "EV_ACTION", EventTag: "EV_EVENT_TAG", CRTMContents: "EV_S_CRTM_CONTENTS", CRTMVersion: "EV_S_CRTM_VERSION",
	CPUMicrocode: "EV_CPU_MICROCODE", PlatformConfigFlags: "EV_PLATFORM_CONFIG_FLAGS", TableOfDevices: "EV_TABLE_OF_DEVICES",
	CompactHash: "EV_COMPACT_HASH", IPL: "EV_IPL", IPLPartitionData: "EV_IPL_PARTITION_DATA", NonhostCode: "EV_NONHOST_CODE",
	NonhostConfig: "EV_NONHOST_CONFIG", NonhostInfo: "EV_NONHOST_INFO", OmitBootDeviceEvents: "EV_OMIT_BOOT_DEVICE_EVENTS",
	PostCode2: "EV_POST_CODE2", VariableDriverConfig: "EV_EFI_VARIABLE_DRIVER_CONFIG", VariableBoot: "EV_EFI_VARIABLE_BOOT",
	BootServicesApplication: "EV_EFI_BOOT_SERVICES_APPLICATION", BootServicesDriver: "EV_EFI_BOOT_SERVICES_DRIVER",
	RuntimeServicesDriver: "EV_EFI_RUNTIME_SERVICES_DRIVER", GPTEvent: "EV_EFI_GPT_EVENT", EFIAction: "EV_EFI_ACTION",
	PlatformFirmwareBlob: "EV_EFI_PLATFORM_FIRMWARE_BLOB", HandoffTables: "EV_EFI_HANDOFF_TABLES",
	PlatformFirmwareBlob2: "EV_EFI_PLATFORM_FIRMWARE_BLOB2", HandoffTables2: "EV_EFI_HANDOFF_TABLES2",
	VariableBoot2: "EV_EFI_VARIABLE_BOOT2", GPTEvent2: "EV_EFI_GPT_EVENT2", HCRTMEvent: "EV_EFI_HCRTM_EVENT",
	VariableAuthority: "EV_EFI_VARIABLE_AUTHORITY", SPDMFirmwareBlob: "EV_EFI_SPDM_FIRMWARE_BLOB",
	SPDMFirmwareConfig: "EV_EFI_SPDM_FIRMWARE_CONFIG", SPDMDevicePolicy: "EV_EFI_SPDM_DEVICE_POLICY",
	SPDMDeviceAuthority: "EV_EFI_SPDM_DEVICE_AUTHORITY",
}

// String is the specification's name of t.
func (t Type) String() string {
	if name, ok := typeNames[t]; ok {
		return name
	}
	return fmt.Sprintf("event type 0x%x", uint32(t))
}
