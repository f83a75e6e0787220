/* SPDX-License-Identifier: MIT */
/*
 * tinyvmm: a virtual machine monitor that boots Linux, for x86_64.
 *
 *   main.c      options, the console's keys, the loop around KVM_RUN
 *   memory.c    RAM, at the start and while the guest runs, from libgmem
 *   boot.c      loads the kernel, its parameters and page tables into RAM
 *   acpi.c      tables that tell the kernel of its devices
 *   vcpu.c      the processor: its features, its first state, saving its state
 *   serial.c    a serial console
 *   virtio.c    virtio over MMIO, and the queues in guest memory
 *   block.c     virtio-blk on a file
 *   hotplug.c   virtio-mem: memory added and removed while the guest runs
 *   snapshot.c  saves all of this to a file, and restores it; then only what changed
 *   migrate.c   sends all of this to another tinyvmm while the guest runs
 */
#ifndef TINYVMM_H
#define TINYVMM_H

#include <linux/kvm.h>
#include <linux/virtio_mem.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <gmem.h>

#define EXIT_CANNOT_RUN 77

#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)

/* Guest addresses that are not RAM */
#define VIRTIO_BASE	0xd0000000	/* one page for each device */
#define VIRTIO_PAGE	0x1000
#define HOTPLUG_BASE	(64 * GIB)
#define ACPI_PORT	0x600		/* PM1: status, enable, control */

/* Interrupt lines */
#define SERIAL_IRQ	4
#define VIRTIO_IRQ	16		/* of the first device; the others follow */

/* Memory is hot-added in pieces; each is a region, and has 64 blocks. */
#define PIECE_SIZE	(128 * MIB)
#define BLOCK_SIZE	(2 * MIB)
#define PIECES		8

#define SNAPSHOTS	64	/* of a chain that is restored */

enum virtio_number { VIRTIO_BLOCK, VIRTIO_MEMORY, VIRTIO_COUNT };

struct vmm;

/* The state of each device is a struct of numbers, which a snapshot copies. */

struct serial_state {
	uint8_t interrupt_enable, fifo_control, line_control, modem_control;
	uint8_t scratch, divisor[2];
	uint8_t transmit_pending;	/* interrupt "transmitter empty" is pending */
	uint32_t received_from, received_to;
	uint8_t received[1024];		/* a ring; both indices only increase */
};

struct virtio_state {
	uint32_t features_select, driver_features_select;
	uint64_t driver_features;
	uint32_t status, interrupt_status, generation;
	uint32_t queue_size, queue_ready;
	uint64_t descriptors, available, used;
	uint16_t next_available, next_used;
	uint32_t padding;
};

struct hotplug_state {
	struct virtio_mem_config config;
	uint64_t plugged[PIECES];	/* for each piece a bit for each of its blocks */
};

struct device_state {
	struct serial_state serial;
	struct virtio_state virtio[VIRTIO_COUNT];
	struct hotplug_state hotplug;
	uint16_t acpi_enable, acpi_padding[3];
};

/* A chain of buffers that the driver made available */
struct virtio_chain {
	uint32_t count;
	uint32_t readable;		/* buffers at the start that the device reads */
	struct {
		uint64_t gpa;
		uint32_t size;
	} buffers[64];
};

/* A virtio device: its configuration and how it serves a request */
struct virtio_device {
	uint32_t id;
	uint64_t features;
	const void *config;
	uint32_t config_size;
	/* Returns the bytes written to the chain, or -errno if the request is malformed. */
	int64_t (*serve)(struct vmm *vmm, const struct virtio_chain *chain);
};

/* Requests of the console to the thread that runs the vCPU */
enum request {
	REQUEST_NONE, REQUEST_QUIT, REQUEST_SNAPSHOT, REQUEST_SNAPSHOT_AND_GO_ON, REQUEST_GROW,
	REQUEST_SHRINK, REQUEST_MIGRATE, REQUEST_MIGRATE_REST,
};

struct vmm {
	int kvm_fd, vm_fd, vcpu_fd;
	struct kvm_run *run;
	pthread_t vcpu_thread;

	struct gmem_vm *memory;
	struct gmem_plan *plan;
	struct gmem_view *view;		/* used only by the vCPU's thread */
	struct gmem_ram_range ram[2];
	int ram_ranges;
	struct gmem_region *pieces[PIECES];

	pthread_mutex_t lock;		/* guards devices and requests */
	pthread_cond_t room;		/* serial.received has space, a request is done, or stop */
	enum request request;
	bool tried_again;		/* after an internal error of KVM */
	bool stop;
	int status;			/* exit status */
	struct device_state devices;
	struct virtio_device virtio[VIRTIO_COUNT];
	int disk_fd;
	uint64_t disk_sectors;

	struct gmem_dirty *changes;	/* since the last snapshot; NULL: nobody asked for one yet */
	unsigned int snapshots;
	struct gmem_migration *migration;	/* NULL: none is under way */
	int migration_fd, migration_error;
	pthread_t migration_thread;
};

/* main.c */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);
int must(int result, const char *what);		/* checks a system call */
int gmem_must(int result, const char *what);	/* checks a libgmem call */
void set_irq(struct vmm *vmm, uint32_t irq, bool level);
/* Has the vCPU's thread handle a request once it is done with the one before; with the lock. */
void ask(struct vmm *vmm, enum request request);

/* memory.c */
void memory_attach(struct vmm *vmm, uint32_t backing);
void memory_add_ram(struct vmm *vmm, uint64_t size);
int memory_add_piece(struct vmm *vmm, unsigned int piece);
void memory_remove_piece(struct vmm *vmm, unsigned int piece);
void memory_write(struct vmm *vmm, uint64_t gpa, const void *bytes, uint64_t size);

/* boot.c: guest addresses of the first instruction and its parameters */
struct boot {
	uint64_t entry, parameters, page_tables;
};
void boot_load(struct vmm *vmm, const char *kernel, const char *initrd, const char *command_line,
	       struct boot *ret);

/* acpi.c */
#define ACPI_TABLES 0xe0000	/* to 0x100000 */
uint64_t acpi_write_tables(struct vmm *vmm);
bool acpi_out(struct vmm *vmm, uint16_t port, uint32_t value);	/* true: power off */
uint32_t acpi_in(struct vmm *vmm, uint16_t port);

/* vcpu.c */
struct vcpu_state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	uint32_t xsave[1024];		/* struct kvm_xsave, as long as AMX is not used */
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp_state;
	struct kvm_lapic_state lapic;
	struct kvm_irqchip irqchips[3];
	struct kvm_pit_state2 pit;
	struct kvm_clock_data clock;
	uint32_t msr_count, padding;
	struct kvm_msr_entry msrs[512];
};
void vcpu_create_vm(struct vmm *vmm);
void vcpu_create(struct vmm *vmm);
void vcpu_start_at(struct vmm *vmm, const struct boot *boot);
void vcpu_save(struct vmm *vmm, struct vcpu_state *ret);
void vcpu_restore(struct vmm *vmm, struct vcpu_state *state);

/* serial.c: ports 0x3f8 to 0x3ff */
#define SERIAL_PORT 0x3f8
void serial_out(struct vmm *vmm, uint16_t port, uint8_t value);
uint8_t serial_in(struct vmm *vmm, uint16_t port);
size_t serial_room(struct vmm *vmm);
void serial_receive(struct vmm *vmm, const uint8_t *bytes, size_t count);

/* virtio.c */
void virtio_mmio_write(struct vmm *vmm, uint64_t gpa, uint32_t value);
void virtio_mmio_read(struct vmm *vmm, uint64_t gpa, uint8_t *bytes, uint32_t size);
void virtio_config_changed(struct vmm *vmm, enum virtio_number number);

/* block.c */
void block_open(struct vmm *vmm, const char *path);

/* hotplug.c */
void hotplug_init(struct vmm *vmm);
void hotplug_request(struct vmm *vmm, bool grow);
void hotplug_restore(struct vmm *vmm);

/* snapshot.c: all of a machine that is not memory, and how much memory there is */
struct machine_state {
	char magic[8];
	uint64_t vcpu_size, devices_size, ram_size;
	struct vcpu_state vcpu;
	struct device_state devices;
};
void state_save(struct vmm *vmm, struct machine_state *ret);
const char *state_fault(const struct machine_state *state);	/* NULL: there is none */
void state_add_memory(struct vmm *vmm, const struct machine_state *state);
void snapshot_save(struct vmm *vmm, const char *path, bool goes_on);
void snapshot_restore(struct vmm *vmm, const char *const *paths, unsigned int count);

/* migrate.c */
void migrate_begin(struct vmm *vmm, const char *path);
bool migrate_rest(struct vmm *vmm);	/* true: the guest is elsewhere now */
void migrate_end(struct vmm *vmm);
void migrate_receive(struct vmm *vmm, const char *path);

#endif
