/* SPDX-License-Identifier: MIT */
/*
 * Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst in the kernel):
 * load the kernel at its preferred address, write a zero page of parameters and
 * page tables that map the first 4 GiB to themselves, and jump to 0x200 past the
 * kernel's start.
 */
#include <asm/bootparam.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tinyvmm.h"

#define PARAMETERS	0x10000
#define COMMAND_LINE	0x20000
#define PAGE_TABLES	0x30000
#define LOW_RAM_END	0x9fc00
#define HIGH_RAM	0x100000
#define HEADER_MAGIC	0x53726448	/* "HdrS" */
#define ENTRY_64	0x200

#define E820_RAM	1
#define E820_RESERVED	2

static void fail(const char *path, const char *why)
{
	say("%s %s", path, why);
	exit(EXIT_FAILURE);
}

static int open_file(const char *path, uint64_t *ret_size)
{
	const int fd = must(open(path, O_RDONLY | O_CLOEXEC), path);
	struct stat st;

	must(fstat(fd, &st), path);
	*ret_size = (uint64_t)st.st_size;
	return fd;
}

/* Loads the initrd at the end of RAM below 4 GiB; it must begin at @from or later. */
static void load_initrd(struct vmm *vmm, const char *path, uint64_t from,
			struct setup_header *header)
{
	uint64_t end = vmm->ram[0].size, size, gpa;
	const int fd = open_file(path, &size);

	if (end > (uint64_t)header->initrd_addr_max + 1)
		end = (uint64_t)header->initrd_addr_max + 1;
	gpa = (end - size) & ~(uint64_t)0xfff;
	if (!size || size > end || gpa < from)
		fail(path, "does not fit beside the kernel: give the guest more memory");
	gmem_must(gmem_vm_load(vmm->memory, gpa, fd, 0, size, NULL, NULL), path);
	close(fd);
	header->ramdisk_image = (uint32_t)gpa;
	header->ramdisk_size = (uint32_t)size;
}

static void add_e820(struct boot_params *params, uint64_t gpa, uint64_t size, uint32_t type)
{
	params->e820_table[params->e820_entries++] = (struct boot_e820_entry){
		.addr = gpa, .size = size, .type = type,
	};
}

/* Describes libgmem's layout as RAM, without the addresses below 1 MiB that PCs reserve. */
static void describe_memory(struct vmm *vmm, struct boot_params *params)
{
	add_e820(params, 0, LOW_RAM_END, E820_RAM);
	add_e820(params, ACPI_TABLES, HIGH_RAM - ACPI_TABLES, E820_RESERVED);
	add_e820(params, HIGH_RAM, vmm->ram[0].size - HIGH_RAM, E820_RAM);
	for (int i = 1; i < vmm->ram_ranges; i++)
		add_e820(params, vmm->ram[i].gpa, vmm->ram[i].size, E820_RAM);
}

/* One root, one table of 1 GiB entries, four tables of 2 MiB pages */
static void write_page_tables(struct vmm *vmm)
{
	static uint64_t tables[6][512];
	const uint64_t present_writable = 3, large = 1 << 7;

	tables[0][0] = (PAGE_TABLES + 0x1000) | present_writable;
	for (uint64_t gib = 0; gib < 4; gib++) {
		tables[1][gib] = (PAGE_TABLES + (2 + gib) * 0x1000) | present_writable;
		for (uint64_t i = 0; i < 512; i++)
			tables[2 + gib][i] = (gib << 30 | i << 21) | present_writable | large;
	}
	memory_write(vmm, PAGE_TABLES, tables, sizeof(tables));
}

void boot_load(struct vmm *vmm, const char *kernel, const char *initrd, const char *command_line,
	       struct boot *ret)
{
	struct boot_params params = { 0 };
	struct setup_header *header = &params.hdr;
	uint64_t size, setup_size;
	const int fd = open_file(kernel, &size);

	if (pread(fd, header, sizeof(*header), offsetof(struct boot_params, hdr)) !=
	    (ssize_t)sizeof(*header))
		fail(kernel, "is no bzImage");
	if (header->header != HEADER_MAGIC || header->version < 0x20c ||
	    !(header->xloadflags & XLF_KERNEL_64))
		fail(kernel, "is no bzImage of a 64-bit kernel");
	setup_size = ((header->setup_sects ? header->setup_sects : 4u) + 1) * (uint64_t)512;
	if (size <= setup_size)
		fail(kernel, "is cut short");
	if (header->pref_address + header->init_size > vmm->ram[0].size)
		fail(kernel, "needs more RAM to unpack itself: give the guest more memory");
	if (strlen(command_line) > header->cmdline_size)
		fail(kernel, "takes no command line as long as that");

	/* libgmem reads the file into guest memory. */
	gmem_must(gmem_vm_load(vmm->memory, header->pref_address, fd, setup_size,
			       size - setup_size, NULL, NULL), kernel);
	close(fd);
	if (initrd)
		load_initrd(vmm, initrd, header->pref_address + header->init_size, header);

	memory_write(vmm, COMMAND_LINE, command_line, strlen(command_line) + 1);
	header->cmd_line_ptr = COMMAND_LINE;
	header->type_of_loader = 0xff;
	header->loadflags |= LOADED_HIGH;
	params.acpi_rsdp_addr = acpi_write_tables(vmm);
	describe_memory(vmm, &params);
	memory_write(vmm, PARAMETERS, &params, sizeof(params));
	write_page_tables(vmm);

	ret->entry = header->pref_address + ENTRY_64;
	ret->parameters = PARAMETERS;
	ret->page_tables = PAGE_TABLES;
}
