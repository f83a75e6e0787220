/* SPDX-License-Identifier: MIT */
#include "region/vm_identity.h"

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/limit.h"
#include "base/lock.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/sys.h"

/* The list is the process's, like the fds in it. */
static struct {
	struct gmem_lock lock;		/* rank IDENTITY: the list and all counts */
	struct gmem_vm_identity *first;
} identities = { .lock = GMEM_LOCK_INIT(GMEM_RANK_IDENTITY) };

static struct gmem_vm_identity *find(int vm_fd)
{
	struct gmem_vm_identity *identity = identities.first;

	while (identity && gmem_sys_same_file(vm_fd, identity->fd) != 1)
		identity = identity->next;
	return identity;
}

/*
 * The duplicate is the VM whatever becomes of the caller's number. But who stands between a
 * program and KVM, as the stub of a test does, may know the VM by that number alone. Only
 * a clear no says so: a sandbox may refuse the question.
 */
static int find_asked(int fd, int vm_fd)
{
	int answer = gmem_kvm_check(fd, KVM_CAP_USER_MEMORY);

	return answer == 0 || answer == -ENOTTY || answer == -EINVAL ? vm_fd : fd;
}

static int make(int vm_fd, struct gmem_vm_identity **ret)
{
	struct gmem_vm_identity *identity = malloc(sizeof(*identity));
	int fd;

	if (!identity)
		return gmem_fail(-ENOMEM, "no memory to remember VM fd %d", vm_fd);

	fd = gmem_sys_dup(vm_fd);
	if (fd < 0) {
		free(identity);
		return gmem_fail_by_limit(fd, 0, "VM fd %d cannot be duplicated", vm_fd);
	}

	*identity = (struct gmem_vm_identity){
		.fd = fd,
		.asked = find_asked(fd, vm_fd),
		.number = vm_fd,
		.users = 1,
		.next = identities.first,
	};
	identities.first = identity;
	*ret = identity;
	return 0;
}

int gmem_vm_identity_get(int vm_fd, struct gmem_vm_identity **ret)
{
	struct gmem_vm_identity *identity;
	int err = 0;

	gmem_lock_take(&identities.lock);
	identity = find(vm_fd);
	if (identity) {
		identity->users++;
		*ret = identity;
	} else {
		err = make(vm_fd, ret);
	}
	gmem_lock_drop(&identities.lock);
	return err;
}

struct gmem_vm_identity *gmem_vm_identity_ref(struct gmem_vm_identity *identity)
{
	gmem_lock_take(&identities.lock);
	identity->users++;
	gmem_lock_drop(&identities.lock);
	return identity;
}

/* Closing the last fd of a VM takes a while, so it is closed without the lock. */
void gmem_vm_identity_unref(struct gmem_vm_identity *identity)
{
	struct gmem_vm_identity **link;
	unsigned int users;

	if (!identity)
		return;

	gmem_lock_take(&identities.lock);
	users = --identity->users;
	if (!users) {
		for (link = &identities.first; *link != identity; link = &(*link)->next)
			;
		*link = identity->next;
	}
	gmem_lock_drop(&identities.lock);
	if (users)
		return;

	gmem_sys_close(identity->fd);
	free(identity);
}

void gmem_vm_identity_add_file(struct gmem_vm_identity *identity, struct gmem_vm_file *file)
{
	gmem_lock_take(&identities.lock);
	file->next = identity->files;
	identity->files = file;
	gmem_lock_drop(&identities.lock);
}

void gmem_vm_identity_remove_file(struct gmem_vm_identity *identity, struct gmem_vm_file *file)
{
	struct gmem_vm_file **link;

	gmem_lock_take(&identities.lock);
	for (link = &identity->files; *link != file; link = &(*link)->next)
		;
	*link = file->next;
	gmem_lock_drop(&identities.lock);
}

bool gmem_vm_identity_has_file(const struct gmem_vm_identity *identity, int fd,
			       uint64_t *ret_create_flags)
{
	const struct gmem_vm_file *file;

	gmem_lock_take(&identities.lock);
	for (file = identity->files; file && gmem_sys_same_file(fd, file->fd) != 1; file = file->next)
		;
	if (file)
		*ret_create_flags = file->create_flags;
	gmem_lock_drop(&identities.lock);
	return file;
}

/* KVM makes one open file for a VM, and no way opens a second. */
int gmem_vm_identity_same(const struct gmem_vm_identity *a, const struct gmem_vm_identity *b)
{
	return a == b ? 1 : gmem_sys_same_file(a->fd, b->fd);
}
