/* SPDX-License-Identifier: MIT */
/*
 * A hostile exporter against an import, with the real system calls: what counts is what the
 * kernel maps, and what becomes of memory that is not the import's.
 *
 * The input makes files of every kind that can be sent, changes them while they are mapped,
 * and sends messages about them, with mistakes, with other fds, several at once, or none any
 * more. After each step
 *
 *   - what is mapped at each extent is what the accepted messages say: the right page of the
 *     right file, with access rights where it is granted, and never a hole;
 *   - memory of this process beside each extent, and what it was given since, is untouched and
 *     outside of every extent;
 *   - views say the same, and read what is in the file.
 *
 * When the import is gone, all that it mapped is gone and nothing else, and no fd is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"
#include "share/wire.h"
#include "vma.h"

#define PAGE		((uint64_t)4096)
#define MIB		((uint64_t)1 << 20)
#define GIB		((uint64_t)1 << 30)
#define TIB		((uint64_t)1 << 40)

#define FILE_PAGES	16
#define MAX_STEPS	40
#define MAX_MESSAGES	(3 * MAX_STEPS)
#define MAX_EXTENTS	6
#define MAX_FILES	5
#define MAX_CANARIES	40
#define MAX_FDS		256
#define MAX_MAPPINGS	4096

/* Older headers lack these. */
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE	0x0010
#endif
#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD		76
#endif
#define CREATE_GUEST_MEMFD	_IOWR(KVMIO, 0xd4, struct create_guest_memfd)

struct create_guest_memfd {
	uint64_t size;
	uint64_t flags;
	uint64_t reserved[6];
};

/* ---- files ---- */

enum kind {
	SEALED, UNSEALED, READ_ONLY, FULLY_SEALED, FUTURE_WRITE, SPARSE, HUGE_2M, HUGE_1G, GMEM,
	GMEM_MMAP, REOPENED, PIPE, ZERO, PROC, EVENT, PATH, SOCKET, DIRECTORY, KINDS,
};

struct file {
	int fd;			/* -1: none */
	uint64_t size;		/* what a message should say */
	uint64_t page_size;
};

static struct {
	struct fuzz_input in;
	int sock;		/* the exporter's; -1 once closed */
	uint32_t sequence;
	struct file files[MAX_FILES];
	struct gmem_import *import;
	struct gmem_view *view;
	bool is_over;		/* the import ended: what of its last message was done is not known */
	unsigned failing;	/* this many changes of access rights ahead, one fails; 0: none */
	unsigned failures;	/* and so many after it */
	bool fails_half_done;
} world;

static unsigned take(void)
{
	return fuzz_take(&world.in);
}

static int new_memfd(unsigned int flags, uint64_t size, int seals)
{
	int fd = memfd_create("fuzz", MFD_ALLOW_SEALING | MFD_CLOEXEC | flags);

	if (fd < 0)
		return -1;
	CHECK(ftruncate(fd, (off_t)size) == 0);
	CHECK(!seals || fcntl(fd, F_ADD_SEALS, seals) == 0);
	return fd;
}

/* Page n begins with n + 1. */
static int new_numbered(int seals)
{
	static unsigned char bytes[FILE_PAGES * PAGE];
	int fd = new_memfd(0, sizeof(bytes), 0);

	for (uint64_t i = 0; i < FILE_PAGES; i++)
		memcpy(bytes + i * PAGE, &(uint64_t){ i + 1 }, sizeof(uint64_t));
	CHECK(pwrite(fd, bytes, sizeof(bytes), 0) == sizeof(bytes));
	CHECK(fcntl(fd, F_ADD_SEALS, seals) == 0);
	return fd;
}

/* A file of a VM, which has nothing to do with the import; -1 where there is no KVM. */
static int new_gmem(uint64_t size, uint64_t flags)
{
	struct create_guest_memfd create = { .size = size, .flags = flags };
	static int vm_fd = -2;

	if (vm_fd == -2) {
		int kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

		vm_fd = -1;
		for (int i = 0; kvm_fd >= 0 && vm_fd < 0 && i < 10; i++)
			vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
		close(kvm_fd);
	}
	return vm_fd < 0 ? -1 : ioctl(vm_fd, CREATE_GUEST_MEMFD, &create);
}

static int reopen(int fd, int flags)
{
	char path[40];
	int other;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	other = open(path, flags | O_CLOEXEC);
	CHECK(other >= 0);
	close(fd);
	return other;
}

static int pipe_end(void)
{
	int ends[2];

	CHECK(pipe2(ends, O_CLOEXEC) == 0);
	close(ends[1]);
	return ends[0];
}

static const struct {
	unsigned int flags;		/* of memfd_create() */
	uint64_t page_size;
	uint64_t size;			/* 0: FILE_PAGES, numbered */
	int seals;
} memfds[] = {
	[SEALED] = { 0, PAGE, 0, F_SEAL_SHRINK },
	[UNSEALED] = { 0, PAGE, 0, 0 },
	[READ_ONLY] = { 0, PAGE, 0, F_SEAL_SHRINK | F_SEAL_WRITE },
	[FULLY_SEALED] = { 0, PAGE, 0, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL },
	[FUTURE_WRITE] = { 0, PAGE, 0, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE },
	[SPARSE] = { 0, PAGE, 16 * TIB, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL },
	[HUGE_2M] = { MFD_HUGETLB | 21u << 26, 2 * MIB, 8 * MIB,
		      F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL },
	[HUGE_1G] = { MFD_HUGETLB | 30u << 26, GIB, 2 * GIB,
		      F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL },
};

/* What is no memfd, or not all of one; its size and page size are those of a small memfd. */
static int new_other(enum kind kind)
{
	switch (kind) {
	case GMEM:
		return new_gmem(FILE_PAGES * PAGE, 0);
	case GMEM_MMAP:
		return new_gmem(FILE_PAGES * PAGE, 3);
	case REOPENED:
		return reopen(new_numbered(F_SEAL_SHRINK), O_RDONLY);
	case PIPE:
		return pipe_end();
	case ZERO:
		return open("/dev/zero", O_RDWR | O_CLOEXEC);
	case PROC:
		return open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	case EVENT:
		return eventfd(0, EFD_CLOEXEC);
	case PATH:
		return reopen(new_numbered(F_SEAL_SHRINK), O_PATH);
	case SOCKET:
		return fcntl(world.sock, F_DUPFD_CLOEXEC, 0);
	default:
		return open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
}

/* What cannot be had on this host is a sealed memfd. */
static struct file new_file(enum kind kind)
{
	struct file file = { -1, FILE_PAGES * PAGE, PAGE };

	if (kind >= GMEM) {
		file.fd = new_other(kind);
	} else if (memfds[kind].size) {
		file.size = memfds[kind].size;
		file.page_size = memfds[kind].page_size;
		file.fd = new_memfd(memfds[kind].flags, file.size, memfds[kind].seals);
	} else {
		file.fd = new_numbered(memfds[kind].seals);
	}
	if (file.fd < 0)
		file = (struct file){ new_numbered(F_SEAL_SHRINK), FILE_PAGES * PAGE, PAGE };
	return file;
}

static struct file *take_file(void)
{
	unsigned how = take();
	struct file *file = &world.files[how % MAX_FILES];

	if (file->fd >= 0 && how & 0x80)
		return file;
	if (file->fd >= 0)
		close(file->fd);
	*file = new_file(take() % KINDS);
	return file;
}

/* While it is mapped, perhaps */
static void change_file(void)
{
	static const int seals[] = { F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE,
				     F_SEAL_SEAL };
	struct file *file = &world.files[take() % MAX_FILES];
	uint64_t size = take() % (2 * FILE_PAGES) * PAGE;
	struct stat st;

	size += take() % 2 * 100;
	switch (take() % 4) {
	case 0:
		if (ftruncate(file->fd, (off_t)size) == 0)
			file->size = size;
		break;
	case 1:
		(void)fcntl(file->fd, F_ADD_SEALS, seals[take() % 5]);
		break;
	case 2:
		if (fstat(file->fd, &st) == 0 && S_ISREG(st.st_mode))
			(void)fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					(off_t)(take() % FILE_PAGES * PAGE), PAGE);
		break;
	default:
		close(file->fd);
		file->fd = -1;
	}
}

/* ---- what the kernel refuses: at its limit of mappings, and perhaps half done ---- */

int __wrap_gmem_sys_mprotect(void *addr, uint64_t size, int prot);
int __real_gmem_sys_mprotect(void *addr, uint64_t size, int prot);

int __wrap_gmem_sys_mprotect(void *addr, uint64_t size, int prot)
{
	uint64_t half = size / 2 / GIB ? size / 2 / GIB * GIB : size / 2 / PAGE * PAGE;

	if (!world.failing || --world.failing)
		return __real_gmem_sys_mprotect(addr, size, prot);
	if (world.fails_half_done && half)
		(void)__real_gmem_sys_mprotect(addr, half, prot);
	world.failing = world.failures ? 1 : 0;
	world.failures -= world.failures > 0;
	return -ENOMEM;
}

static void take_failure(void)
{
	unsigned how = take();

	world.failing = 1 + (how & 3);
	world.failures = how >> 2 & 1;
	world.fails_half_done = how & 8;
}

/* ---- the model: what the import has, by the messages it accepted ---- */

struct extent {
	uint64_t id;
	uint64_t gpa;
	uint64_t size;
	uint64_t offset;
	uint64_t page_size;
	uint64_t inode;
	int fd;			/* a name of the file for this model */
	bool is_writable;
	bool is_withheld;
};

struct sent {
	struct gmem_message message;
	int fd;			/* another name of the file of a map; -1: none */
};

static struct {
	struct extent extents[MAX_EXTENTS];
	size_t count;
	struct sent log[MAX_MESSAGES];	/* the grants and revokes that were accepted */
	size_t logged;
} model;

static struct extent *extent_of_id(uint64_t id)
{
	for (size_t i = 0; i < model.count; i++)
		if (model.extents[i].id == id)
			return &model.extents[i];
	return NULL;
}

static struct extent *extent_at(uint64_t gpa)
{
	for (size_t i = 0; i < model.count; i++)
		if (gpa - model.extents[i].gpa < model.extents[i].size)
			return &model.extents[i];
	return NULL;
}

static bool is_granted(const struct extent *extent, uint64_t gpa)
{
	for (size_t i = model.logged; i--;) {
		const struct gmem_message *message = &model.log[i].message;

		if (message->id == extent->id && gpa - message->gpa < message->size)
			return message->type == GMEM_WIRE_GRANT;
	}
	return !extent->is_withheld;
}

static void accept_map(const struct sent *sent)
{
	const struct gmem_message *message = &sent->message;
	struct stat st;

	CHECK(model.count < MAX_EXTENTS && sent->fd >= 0 && fstat(sent->fd, &st) == 0);
	CHECK(S_ISREG(st.st_mode));
	for (size_t i = 0; i < model.count; i++)
		CHECK(message->gpa + message->size <= model.extents[i].gpa ||
		      model.extents[i].gpa + model.extents[i].size <= message->gpa);
	model.extents[model.count++] = (struct extent){
		.id = message->id,
		.gpa = message->gpa,
		.size = message->size,
		.offset = message->offset,
		.page_size = message->page_size,
		.inode = st.st_ino,
		.fd = fcntl(sent->fd, F_DUPFD_CLOEXEC, MAX_FDS / 2),
		.is_writable = message->rights & GMEM_RIGHT_WRITE,
		.is_withheld = message->rights & GMEM_WIRE_WITHHELD,
	};
}

static void forget(struct extent *extent)
{
	size_t kept = 0;

	for (size_t i = 0; i < model.logged; i++)
		if (model.log[i].message.id != extent->id)
			model.log[kept++] = model.log[i];
	model.logged = kept;
	close(extent->fd);
	*extent = model.extents[--model.count];
}

static void model_accepts(const struct sent *sent)
{
	const struct gmem_message *message = &sent->message;
	struct extent *extent = extent_of_id(message->id);

	switch (message->type) {
	case GMEM_WIRE_MAP:
		CHECK(!extent);
		accept_map(sent);
		break;
	case GMEM_WIRE_UNMAP:
		CHECK(extent);
		forget(extent);
		break;
	case GMEM_WIRE_GRANT:
	case GMEM_WIRE_REVOKE:
		CHECK(extent && message->gpa >= extent->gpa &&
		      message->gpa - extent->gpa + message->size <= extent->size);
		CHECK(message->gpa % PAGE == 0 && message->size % PAGE == 0);
		CHECK(model.logged < MAX_MESSAGES);
		model.log[model.logged++] = *sent;
		break;
	default:
		CHECK(message->type == GMEM_WIRE_HELLO || message->type == GMEM_WIRE_READY);
	}
}

/* ---- memory that is not the import's ---- */

struct canary {
	unsigned char *at;
	uint64_t size;
};

static struct {
	struct canary canaries[MAX_CANARIES];
	size_t count;
	struct gmem_extent table[MAX_EXTENTS];
	int extents;
} foreign;

static void plant(void *where, uint64_t size)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (where ? MAP_FIXED_NOREPLACE : 0);
	struct canary *canary = &foreign.canaries[foreign.count];
	uint64_t mark;

	if (foreign.count == MAX_CANARIES)
		return;
	canary->at = mmap(where, size, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (canary->at == MAP_FAILED)
		return;
	canary->size = size;
	for (int i = 0; i < foreign.extents; i++)
		CHECK((uintptr_t)canary->at + size <= (uintptr_t)foreign.table[i].hva ||
		      (uintptr_t)canary->at >= (uintptr_t)foreign.table[i].hva + foreign.table[i].size);
	mark = (uintptr_t)canary->at;
	memcpy(canary->at, &mark, sizeof(mark));
	memcpy(canary->at + size - sizeof(mark), &mark, sizeof(mark));
	foreign.count++;
}

/* Beside each extent, and where the kernel puts something new of a telling size */
static void plant_canaries(void)
{
	static const uint64_t sizes[] = { PAGE, 2 * MIB, 16 * PAGE, GIB };

	for (int i = 0; i < foreign.extents; i++) {
		unsigned char *hva = foreign.table[i].hva;

		plant(hva - PAGE, PAGE);
		plant(hva + foreign.table[i].size, PAGE);
	}
	plant(NULL, sizes[world.sequence % 4]);
}

static void check_canaries(void)
{
	for (size_t i = 0; i < foreign.count; i++) {
		const struct canary *canary = &foreign.canaries[i];
		uint64_t mark = (uintptr_t)canary->at, at = mark, end = at + canary->size;
		struct vma vma;

		while (at < end) {
			CHECK(vma_find(at, &vma) && vma.start <= at);
			CHECK(!vma.inode && vma.is_readable && vma.is_writable && !vma.is_shared);
			at = vma.end;
		}
		CHECK(memcmp(canary->at, &mark, sizeof(mark)) == 0);
		CHECK(memcmp(canary->at + canary->size - sizeof(mark), &mark, sizeof(mark)) == 0);
	}
}

/* Every file that is mapped: an allocator may have come to map and reserve other memory. */
static size_t list_mappings(struct vma list[MAX_MAPPINGS])
{
	uint64_t near = (uintptr_t)foreign.canaries[0].at, from = near > 20 * TIB ? near - 20 * TIB : 0;
	size_t count = 0;
	struct vma vma;

	while (vma_find(from, &vma) && vma.start < near + 20 * TIB) {
		from = vma.end;
		if (vma.inode) {
			CHECK(count < MAX_MAPPINGS);
			list[count++] = vma;
		}
	}
	return count;
}

static bool is_same(const struct vma *a, const struct vma *b)
{
	return a->start == b->start && a->end == b->end && a->offset == b->offset &&
	       a->inode == b->inode && a->is_readable == b->is_readable &&
	       a->is_writable == b->is_writable && a->is_shared == b->is_shared;
}

static void compare_mappings(const struct vma *before, size_t count, const struct vma *after,
			     size_t count_after)
{
	for (size_t i = 0; i < count_after || i < count; i++) {
		if (i < count && i < count_after && is_same(&before[i], &after[i]))
			continue;
		fprintf(stderr, "mapped before: %" PRIx64 "-%" PRIx64 ", now: %" PRIx64 "-%" PRIx64 "\n",
			i < count ? before[i].start : 0, i < count ? before[i].end : 0,
			i < count_after ? after[i].start : 0, i < count_after ? after[i].end : 0);
		abort();
	}
}

/* ---- what must be so after each step ---- */

/* What is mapped in an extent, part by part */
static void check_mapping(const struct gmem_extent *mapped)
{
	const struct extent *extent = extent_at(mapped->gpa);
	uint64_t hva = (uintptr_t)mapped->hva, at = hva, end = hva + mapped->size;
	struct vma vma;

	CHECK(world.is_over || (extent && extent->gpa == mapped->gpa && extent->size == mapped->size &&
				extent->offset == mapped->offset));
	for (; at < end; at = vma.end) {
		uint64_t first = mapped->gpa + (at - hva), last;

		/* A hole would be the next thing's that this process maps. */
		CHECK(vma_find(at, &vma) && vma.start <= at);
		last = mapped->gpa + ((vma.end < end ? vma.end : end) - PAGE - hva);
		CHECK(vma.is_readable || !vma.is_writable);
		if (world.is_over)
			continue;
		CHECK(is_granted(extent, first) == vma.is_readable);
		CHECK(is_granted(extent, last) == vma.is_readable);
		CHECK(vma.inode == extent->inode && vma.is_shared);
		CHECK(vma.is_writable == (vma.is_readable && extent->is_writable));
		CHECK(vma.offset + (at - vma.start) == extent->offset + (at - hva));
	}
}

static const char *hva_of(const struct extent *extent)
{
	for (int i = 0; i < foreign.extents; i++)
		if (foreign.table[i].gpa == extent->gpa)
			return foreign.table[i].hva;
	return NULL;
}

static void check_granted(const struct extent *extent, uint64_t gpa)
{
	uint64_t within = gpa - extent->gpa, value = 0, expected = 0;
	const void *hva;
	void *for_writing;
	bool is_there;
	int err;

	is_there = pread(extent->fd, &expected, 8, (off_t)(extent->offset + within)) == 8;
	gmem_view_begin(world.view);
	err = gmem_view_hva_read(world.view, gpa, 8, &hva);
	CHECK(err == 0 && hva == hva_of(extent) + within);
	err = gmem_view_hva(world.view, gpa, 8, &for_writing);
	CHECK(err == (extent->is_writable ? 0 : -EROFS));
	gmem_view_end(world.view);

	err = gmem_view_load(world.view, gpa, 8, GMEM_RELAXED, &value);
	CHECK(err == 0 || err == -EFAULT);
	if (err)
		return;
	CHECK(!is_there || value == expected);
	CHECK(*(const volatile uint64_t *)hva == value);
	err = gmem_view_store(world.view, gpa, 8, GMEM_RELAXED, value);
	CHECK(err == (extent->is_writable ? 0 : -EROFS));
}

static void check_page(uint64_t gpa)
{
	const struct extent *extent = extent_at(gpa);
	uint64_t value;
	int err;

	if (extent && is_granted(extent, gpa)) {
		check_granted(extent, gpa);
		return;
	}
	err = gmem_view_load(world.view, gpa, 8, GMEM_RELAXED, &value);
	CHECK(extent ? err == -EACCES : err == -ENOENT || err == -ESTALE);
}

static void check_views(void)
{
	for (size_t i = 0; i < model.count; i++) {
		const struct extent *extent = &model.extents[i];

		check_page(extent->gpa);
		check_page(extent->gpa + extent->size - PAGE);
		check_page(extent->gpa + extent->size / 2 / PAGE * PAGE);
		if (extent->gpa)
			check_page(extent->gpa - PAGE);
		check_page(extent->gpa + extent->size);
	}
	for (size_t i = model.logged > 2 ? model.logged - 2 : 0; i < model.logged; i++) {
		const struct gmem_message *message = &model.log[i].message;

		check_page(message->gpa);
		check_page(message->gpa + message->size - PAGE);
		check_page(message->gpa + message->size);
	}
}

static void check_all(void)
{
	foreign.extents = gmem_import_table(world.import, foreign.table, MAX_EXTENTS);
	CHECK(foreign.extents >= 0);
	CHECK(world.is_over || (size_t)foreign.extents == model.count);
	for (int i = 0; i < foreign.extents; i++)
		check_mapping(&foreign.table[i]);
	check_canaries();
	if (!world.is_over)
		check_views();
}

/* ---- messages ---- */

static uint64_t take_unit(uint64_t page_size)
{
	unsigned which = take() % 8;

	return which < 5 ? page_size : which == 5 ? PAGE : which == 6 ? 2 * MIB : 5 * PAGE;
}

static void make_map(struct gmem_message *message, int *ret_fd)
{
	static const uint32_t rights[] = { 3, 1, 3 | GMEM_WIRE_WITHHELD, 1 | GMEM_WIRE_WITHHELD };
	const struct file *file = take_file();
	uint64_t unit = take_unit(file->page_size);
	unsigned how = take();

	message->id = 1 + take() % 8;
	message->gpa = take() % 8 * 4 * GIB;
	message->gpa += take() % 8 * unit;
	message->offset = how & 7 ? take() % 4 * unit : 0;
	message->size = how & 3 ? (1 + take() % 8) * unit : file->size;
	if (how == 0x80 && file->size > TIB)
		message->offset = 15 * TIB;
	message->file_size = file->size;
	message->page_size = (uint32_t)file->page_size;
	message->rights = rights[how >> 3 & 3];
	message->backing = 1 + how % 5;
	*ret_fd = file->fd;
}

/* Also where an address of this process is a multiple of a large page: a guess that may hit */
static void make_part(struct gmem_message *message)
{
	const struct extent *extent = model.count ? &model.extents[take() % model.count] : NULL;
	unsigned how = take();
	uint64_t unit = take_unit(extent ? extent->page_size : PAGE);

	message->id = extent ? extent->id : 1;
	message->gpa = (extent ? extent->gpa : 0) + (how & 7) * unit;
	message->size = (1 + (how >> 3 & 7)) * unit;
	if (extent && how >> 6 == 1)
		message->size = extent->size - (message->gpa - extent->gpa);
	else if (extent && how >> 6 == 2)
		message->gpa = extent->gpa;
	else if (extent && how >> 6 == 3)
		message->gpa = extent->gpa - (uintptr_t)hva_of(extent) % extent->page_size + extent->page_size;
}

static struct sent make_message(void)
{
	static const enum gmem_wire_type types[] = {
		GMEM_WIRE_MAP, GMEM_WIRE_GRANT, GMEM_WIRE_MAP, GMEM_WIRE_REVOKE,
		GMEM_WIRE_GRANT, GMEM_WIRE_UNMAP, GMEM_WIRE_MAP, GMEM_WIRE_GRANT,
		GMEM_WIRE_REVOKE, GMEM_WIRE_MAP, GMEM_WIRE_READY, GMEM_WIRE_UNMAP,
		GMEM_WIRE_MAP, GMEM_WIRE_GRANT, GMEM_WIRE_HELLO, GMEM_WIRE_ANSWER,
	};
	struct sent sent = { .message = { .type = types[take() % 16], .sequence = world.sequence }, .fd = -1 };

	if (sent.message.type == GMEM_WIRE_MAP)
		make_map(&sent.message, &sent.fd);
	else if (sent.message.type == GMEM_WIRE_GRANT || sent.message.type == GMEM_WIRE_REVOKE)
		make_part(&sent.message);
	else if (sent.message.type == GMEM_WIRE_UNMAP)
		sent.message.id = model.count ? model.extents[take() % model.count].id : 1;
	else if (sent.message.type == GMEM_WIRE_HELLO)
		sent.message.page_size = PAGE;
	return sent;
}

/* A packet with @count times the same fd, in as many control messages */
static void send_packet(const void *bytes, size_t size, int fd, unsigned count)
{
	char control[16 * CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = size };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0 && count) {
		message.msg_control = control;
		message.msg_controllen = count * CMSG_SPACE(sizeof(int));
		for (unsigned i = 0; i < count; i++) {
			struct cmsghdr *header = (void *)(control + i * CMSG_SPACE(sizeof(int)));

			header->cmsg_level = SOL_SOCKET;
			header->cmsg_type = SCM_RIGHTS;
			header->cmsg_len = CMSG_LEN(sizeof(int));
			memcpy(CMSG_DATA(header), &fd, sizeof(fd));
		}
	}
	(void)sendmsg(world.sock, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Sends what make_message() made, perhaps with one mistake; @ret is what was sent. */
static void send_one(struct sent *ret)
{
	uint8_t bytes[GMEM_WIRE_BYTES + 8] = { 0 };
	unsigned odd = take(), fds;
	size_t size = GMEM_WIRE_BYTES;

	*ret = make_message();
	world.sequence++;
	gmem_wire_encode(&ret->message, bytes);
	fds = ret->fd >= 0;
	if (odd == 1)
		bytes[take() % GMEM_WIRE_BYTES] ^= (uint8_t)take();
	else if (odd == 2)
		size = take() % sizeof(bytes);
	else if (odd == 3)
		fds = take() % 16;
	else if (odd == 4)
		ret->fd = world.files[take() % MAX_FILES].fd;
	if (odd == 3 && ret->fd < 0)
		ret->fd = world.files[0].fd;
	/* The next message may close it. */
	if (ret->fd >= 0)
		ret->fd = fcntl(ret->fd, F_DUPFD_CLOEXEC, 0);
	send_packet(bytes, size, ret->fd, fds);
	/* It is what arrived that counts. */
	if (gmem_wire_decode(bytes, size, &ret->message) != 0)
		ret->message.type = 0;
}

static void receive_answers(const struct sent *sent, size_t count)
{
	struct gmem_message answer;
	size_t i = 0;
	int fd;

	while (gmem_wire_receive(world.sock, &answer, &fd) == 1) {
		CHECK(answer.type == GMEM_WIRE_ANSWER && i < count);
		CHECK(answer.sequence == sent[i].message.sequence);
		if (!answer.status)
			model_accepts(&sent[i]);
		i++;
	}
	CHECK(i == count || world.is_over);
}

static void dispatch(const struct sent *sent, size_t count)
{
	struct pollfd fd = { .fd = gmem_import_fd(world.import), .events = POLLIN };
	int ret = gmem_import_dispatch(world.import);

	/* A call takes only the time that it allows itself, and goes on at the next. */
	for (unsigned n = 0; ret >= 0 && poll(&fd, 1, 0) > 0; n++) {
		CHECK(n < 100);
		ret = gmem_import_dispatch(world.import);
	}
	if (ret < 0) {
		CHECK(ret == -EPROTO || ret == -EPIPE || ret == -ENOMEM || ret == -EIO);
		world.is_over = true;
	}
	if (world.sock >= 0)
		receive_answers(sent, count);
}

static void step(void)
{
	struct sent sent[3];
	size_t count = 0;
	unsigned how = take();

	if (how % 16 == 0) {
		change_file();
	} else if (how == 0xff && world.sock >= 0) {
		close(world.sock);
		world.sock = -1;
	} else if (world.sock >= 0) {
		if ((how & 0x8f) == 0x83)
			take_failure();
		for (count = 0; count < (how % 16 == 1 ? 3 : how % 16 == 2 ? 2 : 1); count++)
			send_one(&sent[count]);
	}
	dispatch(sent, count);
	while (count--)
		if (sent[count].fd >= 0)
			close(sent[count].fd);
	check_all();
	plant_canaries();
}

/* ---- the world ---- */

static unsigned count_fds(void)
{
	unsigned count = 0;

	for (int fd = 0; fd < MAX_FDS; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

/* The socket is the exporter's, before it is the import's: so are its options. */
static int new_sockets(unsigned options)
{
	int sockets[2], on = 1;

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) == 0);
	world.sock = sockets[0];
	if (options & 1)
		(void)setsockopt(sockets[1], SOL_SOCKET, SO_PASSPIDFD, &on, sizeof(on));
	if (options & 2)
		(void)setsockopt(sockets[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
	if (options & 4)
		(void)setsockopt(sockets[1], SOL_SOCKET, SO_TIMESTAMP, &on, sizeof(on));
	return sockets[1];
}

static void begin(void)
{
	static const uint64_t limits[] = { 64 * GIB, 40 * PAGE, 8 * GIB, 128 * GIB };
	unsigned how = take();
	GMEM_OPTS(gmem_import_opts, opts, .max_extents = MAX_EXTENTS, .max_bytes = limits[how & 3],
		  .flags = how & 4 ? GMEM_IMPORT_UNSEALED : 0);
	const struct gmem_message hello = { .type = GMEM_WIRE_HELLO, .page_size = PAGE };
	int sock = new_sockets(how >> 5);

	memset(&model, 0, sizeof(model));
	for (size_t i = 0; i < MAX_FILES; i++)
		world.files[i].fd = -1;
	world.sequence = world.failing = 0;
	world.is_over = false;
	/* With the most bytes there are other limits. */
	if ((how & 3) == 3) {
		opts.max_mappings = 8 + take() % 32;
		opts.max_table_bytes = (uint64_t)4096 << take() % 16;
	}
	CHECK(gmem_import_new(sock, &opts, &world.import) == 0);
	close(sock);
	CHECK(gmem_import_view_new(world.import, &world.view) == 0);
	if (how & 8)
		CHECK(gmem_recovery_enable() == 0);
	if (!(how & 16)) {
		struct sent sent = { hello, -1 };

		CHECK(gmem_wire_send(world.sock, &hello, -1) == 0);
		dispatch(&sent, 1);
		world.sequence = 1;
	}
}

static void end(void)
{
	gmem_view_free(world.view);
	gmem_import_free(world.import);
	gmem_recovery_disable();
	if (world.sock >= 0)
		close(world.sock);
	for (size_t i = 0; i < model.count; i++)
		close(model.extents[i].fd);
	for (size_t i = 0; i < MAX_FILES; i++)
		if (world.files[i].fd >= 0)
			close(world.files[i].fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct vma before[MAX_MAPPINGS], after[MAX_MAPPINGS];
	size_t mappings;
	unsigned fds;

	/* What is made once, at the first input, is no leak. */
	if (!foreign.count) {
		close(new_gmem(PAGE, 0));
		plant(NULL, PAGE);
		list_mappings(before);
	}
	world.in = (struct fuzz_input){ data, size };
	mappings = list_mappings(before);
	fds = count_fds();

	begin();
	for (unsigned i = 0; i < MAX_STEPS && world.in.left; i++)
		step();
	end();

	check_canaries();
	while (foreign.count > 1) {
		struct canary *canary = &foreign.canaries[--foreign.count];

		CHECK(munmap(canary->at, canary->size) == 0);
	}
	foreign.extents = 0;
	compare_mappings(before, mappings, after, list_mappings(after));
	CHECK(count_fds() == fds);
	return 0;
}
