/* SPDX-License-Identifier: MIT */
/*
 * The ACPI tables that Linux needs to find its interrupt controllers and the
 * virtio devices, and to switch the machine off.
 */
#include <string.h>

#include "tinyvmm.h"

#define SLEEP_ENABLE	(1 << 13)
#define SCI_IRQ		9

struct header {
	char signature[4];
	uint32_t length;
	uint8_t revision, checksum;
	char oem_id[6], oem_table_id[8];
	uint32_t oem_revision;
	char creator_id[4];
	uint32_t creator_revision;
} __attribute__((packed));

struct rsdp {
	char signature[8];
	uint8_t checksum;
	char oem_id[6];
	uint8_t revision;
	uint32_t rsdt, length;
	uint64_t xsdt;
	uint8_t extended_checksum, reserved[3];
} __attribute__((packed));

struct xsdt {
	struct header header;
	uint64_t tables[2];
} __attribute__((packed));

/* The fields of revision 3. The 64-bit addresses are 0, so Linux uses the 32-bit ones. */
struct fadt {
	struct header header;
	uint32_t facs, dsdt;
	uint8_t reserved0, profile;
	uint16_t sci_irq;
	uint32_t smi_command;
	uint8_t acpi_enable, acpi_disable, s4_request, pstate_control;
	uint32_t pm1a_event, pm1b_event, pm1a_control, pm1b_control;
	uint32_t pm2_control, pm_timer, gpe0, gpe1;
	uint8_t pm1_event_size, pm1_control_size, pm2_control_size, pm_timer_size;
	uint8_t gpe0_size, gpe1_size, gpe1_base, cstate_control;
	uint16_t c2_latency, c3_latency, flush_size, flush_stride;
	uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
	uint16_t boot_flags;
	uint8_t reserved1;
	uint32_t flags;
	uint8_t rest[128];
} __attribute__((packed));

struct facs {
	char signature[4];
	uint32_t length;
	uint8_t rest[56];
} __attribute__((packed));

struct madt {
	struct header header;
	uint32_t lapic_address, flags;
	uint8_t lapic_type, lapic_length, lapic_processor, lapic_id;
	uint32_t lapic_flags;
	uint8_t ioapic_type, ioapic_length, ioapic_id, ioapic_reserved;
	uint32_t ioapic_address, ioapic_first_irq;
} __attribute__((packed));

/* AML for: Name (_S5, Package () { 5, 5 }) */
static const uint8_t aml_power_off[] = {
	0x08, '_', 'S', '5', '_', 0x12, 0x06, 0x02, 0x0a, 0x05, 0x0a, 0x05,
};

/* AML for the start of: Scope (\_SB) { the devices } */
struct aml_scope {
	uint8_t op, size[2], name[5];
} __attribute__((packed));

/*
 * AML for: Device (VIRn) { Name (_HID, "LNRO0005") Name (_UID, n) Name (_CCA, 1)
 *	Name (_CRS, ResourceTemplate () { Memory32Fixed (...) Interrupt (...) }) }
 */
struct aml_device {
	uint8_t op[2], size[2], name[4];
	uint8_t hid[15];
	uint8_t uid[6], uid_value;
	uint8_t cca[6];
	uint8_t crs[9];
	uint8_t memory[4];
	uint32_t memory_base, memory_size;
	uint8_t interrupt[5];
	uint32_t interrupt_line;
	uint8_t end[2];
} __attribute__((packed));

static const struct aml_device aml_device = {
	.op = { 0x5b, 0x82 },
	.name = { 'V', 'I', 'R', '0' },
	.hid = { 0x08, '_', 'H', 'I', 'D', 0x0d, 'L', 'N', 'R', 'O', '0', '0', '0', '5', 0 },
	.uid = { 0x08, '_', 'U', 'I', 'D', 0x0a },
	.cca = { 0x08, '_', 'C', 'C', 'A', 0x01 },
	.crs = { 0x08, '_', 'C', 'R', 'S', 0x11, 0x1a, 0x0a, 0x17 },
	.memory = { 0x86, 9, 0, 1 },
	.memory_size = VIRTIO_PAGE,
	.interrupt = { 0x89, 6, 0, 0x01, 1 },	/* not shared, level, active high */
	.end = { 0x79, 0 },
};

struct dsdt {
	struct header header;
	uint8_t power_off[sizeof(aml_power_off)];
	struct aml_scope scope;
	struct aml_device devices[VIRTIO_COUNT];
} __attribute__((packed));

struct tables {
	struct rsdp rsdp;
	uint8_t padding0[4];
	struct xsdt xsdt;
	uint8_t padding1[12];
	struct facs facs;
	struct fadt fadt;
	struct madt madt;
	struct dsdt dsdt;
} __attribute__((packed));

static uint8_t checksum(const void *bytes, size_t size)
{
	const uint8_t *b = bytes;
	uint8_t sum = 0;

	while (size--)
		sum = (uint8_t)(sum + *b++);
	return (uint8_t)-sum;
}

static void finish(struct header *header, const char *signature, uint8_t revision, size_t size)
{
	memcpy(header->signature, signature, 4);
	memcpy(header->oem_id, "GMEM  ", 6);
	memcpy(header->oem_table_id, "TINYVMM ", 8);
	memcpy(header->creator_id, "GMEM", 4);
	header->revision = revision;
	header->length = (uint32_t)size;
	header->checksum = checksum(header, size);
}

/* A size in AML includes the bytes of the size itself, which are two here. */
static void aml_size(uint8_t *at, size_t size)
{
	at[0] = (uint8_t)(0x40 | (size & 0xf));
	at[1] = (uint8_t)(size >> 4);
}

static void fill_dsdt(struct dsdt *dsdt)
{
	memcpy(dsdt->power_off, aml_power_off, sizeof(aml_power_off));
	dsdt->scope.op = 0x10;
	aml_size(dsdt->scope.size, sizeof(dsdt->scope) - 1 + sizeof(dsdt->devices));
	memcpy(dsdt->scope.name, "\\_SB_", 5);
	for (uint8_t i = 0; i < VIRTIO_COUNT; i++) {
		struct aml_device *device = &dsdt->devices[i];

		*device = aml_device;
		aml_size(device->size, sizeof(*device) - sizeof(device->op));
		device->name[3] = (uint8_t)('0' + i);
		device->uid_value = i;
		device->memory_base = VIRTIO_BASE + i * VIRTIO_PAGE;
		device->interrupt_line = VIRTIO_IRQ + i;
	}
	finish(&dsdt->header, "DSDT", 2, sizeof(*dsdt));
}

static void fill_fadt(struct fadt *fadt)
{
	fadt->facs = ACPI_TABLES + offsetof(struct tables, facs);
	fadt->dsdt = ACPI_TABLES + offsetof(struct tables, dsdt);
	fadt->sci_irq = SCI_IRQ;
	fadt->pm1a_event = ACPI_PORT;
	fadt->pm1_event_size = 4;
	fadt->pm1a_control = ACPI_PORT + 4;
	fadt->pm1_control_size = 2;
	fadt->c2_latency = fadt->c3_latency = 0xffff;	/* there are none */
	fadt->boot_flags = 1 << 0 | 1 << 2 | 1 << 5;	/* serial port; no VGA, no clock */
	fadt->flags = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 6;	/* WBINVD; no buttons */
	finish(&fadt->header, "FACP", 3, sizeof(*fadt));
}

static void fill_madt(struct madt *madt)
{
	madt->lapic_address = 0xfee00000;
	madt->flags = 1;		/* there is a PIC, too */
	madt->lapic_length = 8;
	madt->lapic_flags = 1;
	madt->ioapic_type = 1;
	madt->ioapic_length = 12;
	madt->ioapic_id = 1;
	madt->ioapic_address = 0xfec00000;
	finish(&madt->header, "APIC", 1, sizeof(*madt));
}

/* Returns the address of the RSDP, where the kernel begins. */
uint64_t acpi_write_tables(struct vmm *vmm)
{
	struct tables t = { 0 };

	fill_dsdt(&t.dsdt);
	fill_fadt(&t.fadt);
	fill_madt(&t.madt);
	memcpy(t.facs.signature, "FACS", 4);
	t.facs.length = sizeof(t.facs);
	t.xsdt.tables[0] = ACPI_TABLES + offsetof(struct tables, fadt);
	t.xsdt.tables[1] = ACPI_TABLES + offsetof(struct tables, madt);
	finish(&t.xsdt.header, "XSDT", 1, sizeof(t.xsdt));

	memcpy(t.rsdp.signature, "RSD PTR ", 8);
	memcpy(t.rsdp.oem_id, "GMEM  ", 6);
	t.rsdp.revision = 2;
	t.rsdp.length = sizeof(t.rsdp);
	t.rsdp.xsdt = ACPI_TABLES + offsetof(struct tables, xsdt);
	t.rsdp.checksum = checksum(&t.rsdp, 20);
	t.rsdp.extended_checksum = checksum(&t.rsdp, sizeof(t.rsdp));

	memory_write(vmm, ACPI_TABLES, &t, sizeof(t));
	return ACPI_TABLES;
}

/* There are no ACPI events, so the enable register is only stored. */
bool acpi_out(struct vmm *vmm, uint16_t port, uint32_t value)
{
	if (port == ACPI_PORT + 2)
		vmm->devices.acpi_enable = (uint16_t)value;
	return port == ACPI_PORT + 4 && value & SLEEP_ENABLE;
}

uint32_t acpi_in(struct vmm *vmm, uint16_t port)
{
	if (port == ACPI_PORT + 2)
		return vmm->devices.acpi_enable;
	return port == ACPI_PORT + 4;	/* ACPI is on */
}
