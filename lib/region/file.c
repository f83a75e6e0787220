/* SPDX-License-Identifier: MIT */
#include "region/file.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "gmem.h"
#include "base/backing.h"
#include "base/check.h"
#include "base/error.h"
#include "base/interval_tree.h"
#include "base/limit.h"
#include "base/opts.h"
#include "caps/probe_slot.h"
#include "nofault/nofault.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"

/* Small enough to notice signals, large enough that the call's cost does not show */
#define CHUNK (UINT64_C(64) << 20)

/* Signals in a row, without one page of progress between them, after which it gives up */
#define MAX_INTERRUPTIONS 1000

/* ---- create, adopt, free ---- */

/* Takes @vm, on failure, too. */
static struct gmem_file *new_file(struct gmem_vm_identity *vm, uint64_t size,
				  uint64_t create_flags)
{
	struct gmem_file *file = malloc(sizeof(*file));

	if (!file) {
		gmem_vm_identity_unref(vm);
		gmem_fail(-ENOMEM, "no memory for a file handle");
		return NULL;
	}

	*file = (struct gmem_file){
		.fd = -1,
		.vm = vm,
		.users = 1,
		.size = size,
		.create_flags = create_flags,
	};
	gmem_lock_init(&file->lock, GMEM_RANK_FILE);
	return file;
}

static void set_fd(struct gmem_file *file, int fd)
{
	file->fd = fd;
	file->known.fd = fd;
	if (file->vm)
		gmem_vm_identity_add_file(file->vm, &file->known);
}

static void free_file(struct gmem_file *file)
{
	if (file->fd >= 0) {
		if (file->vm)
			gmem_vm_identity_remove_file(&file->known);
		gmem_sys_close(file->fd);
	}
	gmem_vm_identity_unref(file->vm);
	gmem_lock_destroy(&file->lock);
	free(file);
}

static int create(const struct gmem_vm_identity *vm, uint64_t size, uint64_t flags)
{
	int fd, err;

	fd = gmem_kvm_create_gmemfd(vm->asked, size, flags);
	if (fd < 0)
		return gmem_fail_by_limit(fd, 0, "VM fd %d refuses a guest_memfd of 0x%" PRIx64
					  " bytes with create flags 0x%" PRIx64 "%s",
					  vm->number, size, flags,
					  fd == -EIO ? ", being another process's, or dead" : "");

	err = gmem_sys_set_cloexec(fd);
	if (err) {
		gmem_sys_close(fd);
		return gmem_fail(err, "close-on-exec cannot be set on fd %d: %s", fd,
				 gmem_errno_name(err));
	}
	return fd;
}

/* Takes @vm, on failure, too. */
static int make_file(struct gmem_vm_identity *vm, uint64_t size, uint64_t flags,
		     struct gmem_file **ret)
{
	struct gmem_file *file = new_file(vm, size, flags);
	int fd;

	if (!file)
		return -ENOMEM;

	fd = create(vm, size, flags);
	if (fd < 0) {
		free_file(file);
		return fd;
	}

	file->known = (struct gmem_vm_file){
		.is_of_vm = true,
		.create_flags = flags,
		.certain = UINT64_MAX,
	};
	set_fd(file, fd);
	*ret = file;
	return 0;
}

static int check_size(uint64_t size)
{
	return gmem_check_range_within("offset", 0, size, INT64_MAX, "the largest file");
}

GMEM_API int gmem_file_new_raw(int vm_fd, uint64_t size, uint64_t flags, struct gmem_file **ret)
{
	struct gmem_vm_identity *vm;
	int err;

	if (!ret)
		return gmem_fail(-EINVAL, "no place for the file: ret is NULL");

	err = check_size(size);
	if (!err)
		err = gmem_vm_identity_get(vm_fd, &vm);
	return err ? err : make_file(vm, size, flags, ret);
}

GMEM_API int gmem_file_new(int vm_fd, uint64_t size, const struct gmem_plan *plan,
			   struct gmem_file **ret)
{
	if (!plan)
		return gmem_fail(-EINVAL, "plan is NULL");

	if (!gmem_backing_traits(plan->backing)->has_file)
		return gmem_fail(-EINVAL, "the plan says \"%s\": it has no guest_memfd to create",
				 gmem_backing_name(plan->backing));

	return gmem_file_new_raw(vm_fd, size, plan->create_flags, ret);
}

int gmem_file_new_of_vm(struct gmem_vm_identity *vm, uint64_t size, const struct gmem_plan *plan,
			struct gmem_file **ret)
{
	int err = check_size(size);

	return err ? err : make_file(gmem_vm_identity_ref(vm), size, plan->create_flags, ret);
}

bool gmem_file_is_gmemfd(const struct gmem_sys_facts *facts)
{
	return facts->filesystem_type == GUEST_MEMFD_MAGIC || facts->filesystem_type == ANON_INODE_FS_MAGIC;
}

/* Returns 1 or 0, or -errno and a sentence if the kernel does not tell. */
static int ask_is_gmemfd(int fd, uint64_t *ret_type)
{
	char link[64];
	int err;

	err = gmem_sys_filesystem_type(fd, ret_type);
	if (err)
		return gmem_fail(err, "fd %d cannot be looked at: %s", fd, gmem_errno_name(err));
	if (*ret_type != ANON_INODE_FS_MAGIC)
		return *ret_type == GUEST_MEMFD_MAGIC;

	/* Before Linux 6.19 only the name tells a guest_memfd from other anonymous inodes. */
	err = gmem_sys_fd_link(fd, link, sizeof(link));
	if (err < 0)
		return gmem_fail(err, "fd %d is an anonymous inode, and what it is cannot be read in "
				 "/proc/self/fd: %s", fd, gmem_errno_name(err));
	return strcmp(link, "anon_inode:[kvm-gmem]") == 0;
}

GMEM_API int gmem_fd_is_guest_memfd(int fd)
{
	uint64_t type;

	return ask_is_gmemfd(fd, &type);
}

static int check_is_gmemfd(int fd)
{
	uint64_t type = 0;
	int ret = ask_is_gmemfd(fd, &type);

	if (ret)
		return ret < 0 ? ret : 0;
	return gmem_fail(-EINVAL, "fd %d is not a guest_memfd (file system type 0x%" PRIx64 ")", fd,
			 type);
}

/* Binding its first or last page tells whose file it is. */
static int check_is_of_vm(const struct gmem_vm_identity *vm, int gmemfd, uint64_t size)
{
	struct gmem_probe_slot scratch;
	int err;

	err = gmem_probe_slot_open(&scratch, vm->asked, 0);
	if (err)
		return gmem_fail(err, "VM fd %d has no spare memslot to check fd %d with: %s",
				 vm->number, gmemfd, gmem_errno_name(err));

	err = gmem_probe_slot_try_gmemfd(&scratch, gmemfd, 0);
	if (err == -EINVAL)
		err = gmem_probe_slot_try_gmemfd(&scratch, gmemfd, size - scratch.page);
	gmem_probe_slot_close(&scratch);

	/*
	 * From Linux 7.2 on -EEXIST says that the page is bound already, so the file is
	 * of this VM.
	 */
	if (!err || err == -EEXIST)
		return 0;

	if (err == -EINVAL)
		return gmem_fail(-EXDEV,
				 "the guest_memfd fd %d belongs to another VM than fd %d, "
				 "or is bound wholly already", gmemfd, vm->number);
	return gmem_fail(err, "VM fd %d refuses a memslot to check fd %d with: %s", vm->number, gmemfd,
			 gmem_errno_name(err));
}

static int find_create_flags(int fd, uint64_t *ret)
{
	uint64_t page = gmem_sys_page_size();
	void *hva;
	int err;

	*ret = 0;
	err = gmem_sys_mmap(NULL, page, PROT_READ, MAP_SHARED, fd, 0, &hva);
	if (err == -ENODEV)
		return 0;
	if (err)
		return gmem_fail_to_map(err, page, true, "fd %d cannot be mapped to find its create flags", fd);

	*ret = GMEM_CREATE_MMAP;
	err = gmem_sys_madvise(hva, page, MADV_POPULATE_READ);
	if (err == -EPERM || err == -ENOSYS)
		err = gmem_nofault_probe(hva, 1);
	if (!err)
		*ret |= GMEM_CREATE_INIT_SHARED;
	gmem_sys_munmap(hva, page);
	if (err && err != -EFAULT)
		return gmem_fail(err, "fd %d cannot be read to find its create flags: %s", fd,
				 gmem_errno_name(err));
	return 0;
}

/* What the library knows wins over what the caller says. */
static int check_claims(const struct gmem_vm_identity *vm, int gmemfd,
			const struct gmem_adopt_opts *opts, const struct gmem_vm_file_facts *facts)
{
	uint64_t differ = (opts->create_flags ^ facts->create_flags) & facts->certain;

	if (facts->is_of_other)
		return gmem_fail(-EXDEV, "the guest_memfd fd %d, known to be VM fd %d's, belongs to another VM "
				 "than fd %d", gmemfd, facts->other, vm->number);
	if (opts->flags & GMEM_ADOPT_CREATE_FLAGS && differ)
		return gmem_fail(-EINVAL, "create_flags is 0x%" PRIx64 ", but the guest_memfd fd %d was created "
				 "with 0x%" PRIx64, opts->create_flags, gmemfd, facts->create_flags);
	return 0;
}

/*
 * Fills in what the library knows of the file, or else asks KVM. What the caller says is
 * not asked, and so does not become known.
 */
static int find_known(const struct gmem_vm_identity *vm, int gmemfd, uint64_t size,
		      const struct gmem_adopt_opts *opts, struct gmem_vm_file *ret)
{
	struct gmem_vm_file_facts facts;
	int err;

	gmem_vm_identity_find_file(vm, gmemfd, &facts);
	err = check_claims(vm, gmemfd, opts, &facts);
	if (err)
		return err;

	*ret = (struct gmem_vm_file){
		.is_of_vm = facts.is_of_vm,
		.create_flags = facts.create_flags,
		.certain = facts.certain,
	};
	if (vm && !ret->is_of_vm && !(opts->flags & GMEM_ADOPT_OF_VM)) {
		err = check_is_of_vm(vm, gmemfd, size);
		if (err)
			return err;
		ret->is_of_vm = true;
	}
	if (ret->certain || opts->flags & GMEM_ADOPT_CREATE_FLAGS)
		return 0;

	/* Whether it can be mapped does not change; the first page may have been converted. */
	ret->certain = GMEM_CREATE_MMAP;
	return find_create_flags(gmemfd, &ret->create_flags);
}

/* @vm: NULL if the VM does not matter */
static int inspect(const struct gmem_vm_identity *vm, int gmemfd, const struct gmem_adopt_opts *opts,
		   uint64_t *ret_size, struct gmem_vm_file *ret)
{
	struct gmem_fd_kind kind;
	int err;

	err = check_is_gmemfd(gmemfd);
	if (err)
		return err;

	err = gmem_sys_file_size(gmemfd, ret_size);
	if (err)
		return gmem_fail(err, "the size of fd %d cannot be had: %s", gmemfd,
				 gmem_errno_name(err));
	err = gmem_sys_fd_kind(gmemfd, &kind);
	if (err)
		return gmem_fail(err, "fd %d cannot be looked at: %s", gmemfd, gmem_errno_name(err));
	if (!kind.access.reads || !kind.access.writes)
		return gmem_fail(-EBADF, "fd %d is not open for reading and writing: no memory can be had "
				 "from it", gmemfd);
	return find_known(vm, gmemfd, *ret_size, opts, ret);
}

/* Takes @vm, on failure, too. */
static int adopt(struct gmem_vm_identity *vm, int gmemfd, const struct gmem_adopt_opts *opts,
		 struct gmem_file **ret)
{
	bool is_told = opts->flags & GMEM_ADOPT_CREATE_FLAGS;
	struct gmem_vm_file known = { .fd = -1 };
	struct gmem_file *file;
	uint64_t size = 0;
	int err, fd;

	err = inspect(vm, gmemfd, opts, &size, &known);
	if (err) {
		gmem_vm_identity_unref(vm);
		return err;
	}

	file = new_file(vm, size, is_told ? opts->create_flags : known.create_flags);
	if (!file)
		return -ENOMEM;

	fd = gmem_sys_dup(gmemfd);
	if (fd < 0) {
		free_file(file);
		return gmem_fail_by_limit(fd, 0, "fd %d cannot be duplicated", gmemfd);
	}

	file->known = known;
	set_fd(file, fd);
	*ret = file;
	return 0;
}

GMEM_API int gmem_file_adopt(int vm_fd, int gmemfd, const struct gmem_adopt_opts *user_opts,
			     struct gmem_file **ret)
{
	struct gmem_vm_identity *vm = NULL;
	struct gmem_adopt_opts opts;
	int err;

	if (!ret)
		return gmem_fail(-EINVAL, "no place for the file: ret is NULL");

	err = GMEM_COPY_OPTS(gmem_adopt_opts, &opts, user_opts, create_flags);
	if (!err)
		err = gmem_check_flags("flags", opts.flags, GMEM_ADOPT_CREATE_FLAGS | GMEM_ADOPT_OF_VM);
	if (!err && vm_fd == GMEM_NO_VM && opts.flags & GMEM_ADOPT_OF_VM)
		err = gmem_fail(-EINVAL, "without a VM the file cannot be of it (GMEM_ADOPT_OF_VM)");
	if (!err && vm_fd != GMEM_NO_VM)
		err = gmem_vm_identity_get(vm_fd, &vm);
	return err ? err : adopt(vm, gmemfd, &opts, ret);
}

void gmem_file_ref(struct gmem_file *file)
{
	__atomic_add_fetch(&file->users, 1, __ATOMIC_RELAXED);
}

void gmem_file_unref(struct gmem_file *file)
{
	/* Pairs with itself: the last user sees what the others did. */
	if (__atomic_sub_fetch(&file->users, 1, __ATOMIC_ACQ_REL))
		return;

	/* A user may have mapped a region's own file and never freed it. */
	gmem_maps_clear(&file->maps);
	free_file(file);
}

GMEM_API void gmem_file_free(struct gmem_file *file)
{
	if (!file)
		return;

	gmem_maps_clear(&file->maps);
	gmem_file_unref(file);
}

GMEM_API int gmem_file_fd(const struct gmem_file *file)
{
	return file ? file->fd : gmem_fail(-EINVAL, "file is NULL");
}

GMEM_API uint64_t gmem_file_size(const struct gmem_file *file)
{
	return file ? file->size : 0;
}

GMEM_API uint64_t gmem_file_create_flags(const struct gmem_file *file)
{
	return file ? file->create_flags : 0;
}

/* ---- mappings ---- */

static int check_place(const struct gmem_map_opts *opts, uint64_t size)
{
	const uint64_t at_hva = GMEM_MAP_FIXED | GMEM_MAP_REPLACE;
	int err;

	err = gmem_check_flags("flags", opts->flags, GMEM_MAP_READONLY | at_hva);
	if (!err)
		err = gmem_check_alignment(opts->align);
	if (err || !(opts->flags & at_hva))
		return err;

	if ((opts->flags & at_hva) == at_hva)
		return gmem_fail(-EINVAL, "a mapping cannot both replace and spare what is there");
	if (opts->align)
		return gmem_fail(-EINVAL, "an alignment, 0x%" PRIx64 ", and an address exclude each other",
				 opts->align);
	if (!opts->hva)
		return gmem_fail(-EINVAL, "nothing can be mapped at address NULL");
	return gmem_check_range("hva", (uintptr_t)opts->hva, size);
}

static int check_file_range(const struct gmem_file *file, uint64_t offset, uint64_t size)
{
	if (!file)
		return gmem_fail(-EINVAL, "file is NULL");
	return gmem_check_range_within("offset", offset, size, file->size, "the end of the file");
}

static int fail_without_mmap(const struct gmem_file *file)
{
	return gmem_fail(-ENODEV,
			 "the file was created without MMAP (create flags 0x%" PRIx64
			 "): the host cannot map it", file->create_flags);
}

GMEM_API int gmem_file_map(struct gmem_file *file, uint64_t offset, uint64_t size,
			   const struct gmem_map_opts *user_opts, void **ret_hva)
{
	struct gmem_map_opts opts;
	struct gmem_place place;
	int err;

	if (!ret_hva)
		return gmem_fail(-EINVAL, "no place for the address: ret_hva is NULL");

	err = check_file_range(file, offset, size);
	if (!err)
		err = GMEM_COPY_OPTS(gmem_map_opts, &opts, user_opts, align);
	if (!err)
		err = check_place(&opts, size);
	if (err)
		return err;

	place = (struct gmem_place){ .flags = opts.flags, .hva = opts.hva, .align = opts.align };
	err = gmem_maps_add(&file->maps, file->fd, offset, size, &place, ret_hva);
	return err == -ENODEV ? fail_without_mmap(file) : err;
}

GMEM_API int gmem_file_unmap(struct gmem_file *file, void *hva, uint64_t size)
{
	int err;

	if (!file)
		return gmem_fail(-EINVAL, "file is NULL");

	err = gmem_check_range("hva", (uintptr_t)hva, size);
	return err ? err : gmem_maps_remove(&file->maps, (uintptr_t)hva, size);
}

GMEM_API int gmem_file_find_hva(struct gmem_file *file, const void *hva, uint64_t *ret_offset)
{
	if (!file || !ret_offset)
		return gmem_fail(-EINVAL, "%s is NULL", file ? "ret_offset" : "file");

	return gmem_maps_find(&file->maps, (uintptr_t)hva, ret_offset);
}

/* ---- allocate and punch ---- */

static int fallocate_in_chunks(int fd, int mode, uint64_t offset, uint64_t size, uint64_t *done)
{
	uint64_t page = gmem_sys_page_size(), chunk = CHUNK;
	int interruptions = 0, err;

	while (*done < size) {
		uint64_t now = size - *done < chunk ? size - *done : chunk;

		err = gmem_sys_fallocate(fd, mode, offset + *done, now);
		if (!err) {
			*done += now;
			interruptions = 0;
			continue;
		}

		/*
		 * Pages allocated so far stay; smaller steps get through between the
		 * signals.
		 */
		if (err != -EINTR || ++interruptions > MAX_INTERRUPTIONS)
			return err;
		if (chunk > page)
			chunk = chunk / 2 > page ? chunk / 2 : page;
	}
	return 0;
}

static int change_pages(struct gmem_file *file, int mode, const char *verb, uint64_t offset,
			uint64_t size, uint64_t *ret_done)
{
	uint64_t done = 0;
	int err;

	if (ret_done)
		*ret_done = 0;

	err = check_file_range(file, offset, size);
	if (err)
		return err;

	err = fallocate_in_chunks(file->fd, mode, offset, size, &done);
	if (ret_done)
		*ret_done = done;
	if (err)
		return gmem_fail(err,
				 "%s offset 0x%" PRIx64 ", 0x%" PRIx64 " bytes, stopped after 0x%" PRIx64
				 ": %s of fallocate(2)", verb, offset, size, done, gmem_errno_name(err));
	return 0;
}

GMEM_API int gmem_file_allocate(struct gmem_file *file, uint64_t offset, uint64_t size,
				uint64_t *ret_done)
{
	return change_pages(file, FALLOC_FL_KEEP_SIZE, "allocating", offset, size, ret_done);
}

/* No lease is granted on the range from here on: see state/lease.h */
static int begin_punch(struct gmem_file *file, struct gmem_memory_user *punch)
{
	const struct gmem_memory_user *lease;
	int err = 0;

	gmem_lock_take(&file->lock);
	lease = gmem_memory_find_lease(&file->memory_users, punch->at.start, punch->at.last);
	if (lease)
		err = gmem_memory_fail_leased(lease, "file offset", punch->at.start,
					      punch->at.last - punch->at.start + 1);
	else
		gmem_interval_insert(&file->memory_users.discards, &punch->at);
	gmem_lock_drop(&file->lock);
	return err;
}

static void end_punch(struct gmem_file *file, struct gmem_memory_user *punch)
{
	gmem_lock_take(&file->lock);
	gmem_interval_remove(&file->memory_users.discards, &punch->at);
	gmem_lock_drop(&file->lock);
}

int gmem_file_punch_region(struct gmem_file *file, uint64_t offset, uint64_t size, uint64_t *ret_done)
{
	struct gmem_memory_user punch = {
		.at = { .start = offset, .last = offset + size - 1 },
		.name = "punched out of its file",
	};
	int err;

	if (ret_done)
		*ret_done = 0;

	err = check_file_range(file, offset, size);
	if (!err)
		err = begin_punch(file, &punch);
	if (err)
		return err;
	err = change_pages(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, "punching", offset,
			   size, ret_done);
	end_punch(file, &punch);
	return err;
}

/* Which regions have it, and who tracks them, is found out when somebody asks. */
static void note_punch(struct gmem_file *file, uint64_t offset, uint64_t last)
{
	gmem_lock_take(&file->lock);
	if (!file->punches || offset < file->punched.start)
		file->punched.start = offset;
	if (!file->punches || last > file->punched.last)
		file->punched.last = last;
	__atomic_store_n(&file->punches, file->punches + 1, __ATOMIC_RELEASE);
	gmem_lock_drop(&file->lock);
}

GMEM_API int gmem_file_punch(struct gmem_file *file, uint64_t offset, uint64_t size,
			     uint64_t *ret_done)
{
	uint64_t done = 0;
	int err;

	err = gmem_file_punch_region(file, offset, size, &done);
	if (!err || done)
		note_punch(file, offset, offset + (size - 1));
	if (ret_done)
		*ret_done = done;
	return err;
}

bool gmem_file_punched_since(struct gmem_file *file, uint64_t *seen, struct gmem_part *ret)
{
	if (__atomic_load_n(&file->punches, __ATOMIC_ACQUIRE) == *seen)
		return false;
	gmem_lock_take(&file->lock);
	*seen = file->punches;
	*ret = file->punched;
	gmem_lock_drop(&file->lock);
	return true;
}

/* ---- for regions ---- */

/*
 * Returns the VM that @file is of, for the caller to give back; NULL: it was not told.
 * *@ret_is_known: not merely said.
 */
static struct gmem_vm_identity *get_vm(struct gmem_file *file, bool *ret_is_known)
{
	struct gmem_vm_identity *vm;

	gmem_lock_take(&file->lock);
	vm = file->vm ? gmem_vm_identity_ref(file->vm) : NULL;
	*ret_is_known = __atomic_load_n(&file->known.is_of_vm, __ATOMIC_RELAXED);
	gmem_lock_drop(&file->lock);
	return vm;
}

static void set_vm(struct gmem_file *file, struct gmem_vm_identity *vm, bool is_checked)
{
	struct gmem_vm_identity *old;

	gmem_lock_take(&file->lock);
	old = file->vm;
	if (old)
		gmem_vm_identity_remove_file(&file->known);
	file->vm = gmem_vm_identity_ref(vm);
	if (is_checked)
		gmem_vm_identity_prove_file(&file->known);
	gmem_vm_identity_add_file(vm, &file->known);
	gmem_lock_drop(&file->lock);
	gmem_vm_identity_unref(old);
}

int gmem_file_check_vm(struct gmem_file *file, struct gmem_vm_identity *vm)
{
	bool is_known;
	struct gmem_vm_identity *known = get_vm(file, &is_known);
	bool is_new = known != vm;
	int err = 0, same = -ENOENT;

	if (known)
		same = gmem_vm_identity_same(known, vm);
	if (!same && is_known)
		err = gmem_fail(-EXDEV,
				"the guest_memfd fd %d, made on VM fd %d, belongs to another VM than "
				"fd %d", file->fd, known->number, vm->number);
	else if (same <= 0)
		err = check_is_of_vm(vm, file->fd, file->size);
	gmem_vm_identity_unref(known);

	if (!err && is_new)
		set_vm(file, vm, same <= 0);
	return err;
}

int gmem_file_pin(struct gmem_file *file, uint64_t offset, uint64_t size,
		  const struct gmem_place *place, struct gmem_map *map)
{
	int err = gmem_maps_pin(&file->maps, file->fd, offset, size, place, map);

	return err == -ENODEV ? fail_without_mmap(file) : err;
}

/* With the lock held. */
static int check_unbound(const struct gmem_file *file, uint64_t offset, uint64_t size)
{
	const struct gmem_range *other = gmem_range_find(&file->bound, offset, size);

	if (!other)
		return 0;
	return gmem_fail(-EEXIST,
			 "offset 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes: 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes of the file, is bound already",
			 offset, size, other->start, other->size);
}

int gmem_file_check_unbound(struct gmem_file *file, uint64_t offset, uint64_t size)
{
	int err;

	gmem_lock_take(&file->lock);
	err = check_unbound(file, offset, size);
	gmem_lock_drop(&file->lock);
	return err;
}

int gmem_file_bind(struct gmem_file *file, struct gmem_range *range)
{
	int err;

	gmem_lock_take(&file->lock);
	err = check_unbound(file, range->start, range->size);
	if (!err)
		gmem_range_insert(&file->bound, range);
	gmem_lock_drop(&file->lock);
	return err;
}

void gmem_file_unbind(struct gmem_file *file, struct gmem_range *range)
{
	gmem_lock_take(&file->lock);
	gmem_range_remove(&file->bound, range);
	gmem_lock_drop(&file->lock);
}

void gmem_file_move_bound(struct gmem_file *file, struct gmem_range *from, struct gmem_range *to)
{
	gmem_lock_take(&file->lock);
	gmem_range_remove(&file->bound, from);
	to->start = from->start;
	to->size = from->size;
	gmem_range_insert(&file->bound, to);
	gmem_lock_drop(&file->lock);
}

void gmem_file_split_bound(struct gmem_file *file, struct gmem_range *range, uint64_t offset,
			   struct gmem_range *upper)
{
	gmem_lock_take(&file->lock);
	gmem_range_split(&file->bound, range, offset, upper);
	gmem_lock_drop(&file->lock);
}
