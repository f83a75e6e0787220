/* SPDX-License-Identifier: MIT */
#include "region/vm_identity.h"

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/limit.h"
#include "base/lock.h"
#include "caps/caps.h"
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

static bool is_clear_no(int answer)
{
	return answer == 0 || answer == -ENOTTY || answer == -EINVAL;
}

/*
 * The duplicate is the VM whatever becomes of the caller's number. But who stands between a
 * program and KVM, as the stub of a test does, may know the VM by that number alone. Only
 * a clear no says so, or that this is no VM: a sandbox may refuse the question.
 */
static int find_asked(int fd, int vm_fd, int *ret)
{
	bool is_number = is_clear_no(gmem_kvm_check(fd, KVM_CAP_USER_MEMORY));
	int err = 0;

	if (is_number || gmem_sys_ioctl(fd, KVM_GET_API_VERSION, NULL) >= 0)
		err = gmem_caps_check_vm(vm_fd);
	*ret = is_number ? vm_fd : fd;
	return is_clear_no(err) ? err : 0;
}

static int make(int vm_fd, struct gmem_vm_identity **ret)
{
	struct gmem_vm_identity *identity = malloc(sizeof(*identity));
	int fd, asked, err;

	if (!identity)
		return gmem_fail(-ENOMEM, "no memory to remember VM fd %d", vm_fd);

	fd = gmem_sys_dup(vm_fd);
	if (fd < 0) {
		free(identity);
		return gmem_fail_by_limit(fd, 0, "VM fd %d cannot be duplicated", vm_fd);
	}

	err = find_asked(fd, vm_fd, &asked);
	if (err) {
		gmem_sys_close(fd);
		free(identity);
		return err;
	}

	*identity = (struct gmem_vm_identity){
		.fd = fd,
		.asked = asked,
		.number = vm_fd,
		.users = 1,
		.next = identities.first,
	};
	identities.first = identity;
	*ret = identity;
	return 0;
}

/* Whoever calls this has the lock or is a user. */
struct gmem_vm_identity *gmem_vm_identity_ref(struct gmem_vm_identity *identity)
{
	__atomic_add_fetch(&identity->users, 1, __ATOMIC_RELAXED);
	return identity;
}

int gmem_vm_identity_get(int vm_fd, struct gmem_vm_identity **ret)
{
	struct gmem_vm_identity *identity;
	int err = 0;

	gmem_lock_take(&identities.lock);
	identity = find(vm_fd);
	if (identity) {
		gmem_vm_identity_ref(identity);
		*ret = identity;
	} else {
		err = make(vm_fd, ret);
	}
	gmem_lock_drop(&identities.lock);
	return err;
}

/* Returns whether there is another user, who takes it off the list. */
static bool has_other_user(struct gmem_vm_identity *identity)
{
	unsigned int users = __atomic_load_n(&identity->users, __ATOMIC_RELAXED);

	/* Pairs with the decrement below: the last user sees what the others did. */
	while (users > 1)
		if (__atomic_compare_exchange_n(&identity->users, &users, users - 1, true, __ATOMIC_RELEASE,
						__ATOMIC_RELAXED))
			return true;
	return false;
}

/* Closing the last fd of a VM takes a while, so it is closed without the lock. */
void gmem_vm_identity_unref(struct gmem_vm_identity *identity)
{
	struct gmem_vm_identity **link;
	unsigned int users;

	if (!identity || has_other_user(identity))
		return;

	gmem_lock_take(&identities.lock);
	users = __atomic_sub_fetch(&identity->users, 1, __ATOMIC_ACQ_REL);
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
	file->link = &identity->files;
	if (file->next)
		file->next->link = &file->next;
	identity->files = file;
	gmem_lock_drop(&identities.lock);
}

void gmem_vm_identity_remove_file(struct gmem_vm_file *file)
{
	gmem_lock_take(&identities.lock);
	*file->link = file->next;
	if (file->next)
		file->next->link = file->link;
	gmem_lock_drop(&identities.lock);
}

static void add_facts(const struct gmem_vm_identity *identity, const struct gmem_vm_identity *owner,
		      const struct gmem_vm_file *file, struct gmem_vm_file_facts *facts)
{
	bool is_of_vm = __atomic_load_n(&file->is_of_vm, __ATOMIC_RELAXED);
	int same = identity && is_of_vm ? gmem_vm_identity_same(identity, owner) : -ENOENT;

	if (file->certain & ~facts->certain) {
		facts->create_flags = file->create_flags;
		facts->certain = file->certain;
	}
	facts->is_of_vm |= same == 1;
	if (!same) {
		facts->is_of_other = true;
		facts->other = owner->number;
	}
}

void gmem_vm_identity_find_file(const struct gmem_vm_identity *identity, int fd,
				struct gmem_vm_file_facts *ret)
{
	const struct gmem_vm_identity *owner;
	const struct gmem_vm_file *file;

	*ret = (struct gmem_vm_file_facts){ .certain = 0 };
	gmem_lock_take(&identities.lock);
	for (owner = identities.first; owner; owner = owner->next)
		for (file = owner->files; file; file = file->next)
			if (gmem_sys_same_file(fd, file->fd) == 1)
				add_facts(identity, owner, file, ret);
	gmem_lock_drop(&identities.lock);
}

/* KVM makes one open file for a VM, and no way opens a second. */
int gmem_vm_identity_same(const struct gmem_vm_identity *a, const struct gmem_vm_identity *b)
{
	return a == b ? 1 : gmem_sys_same_file(a->fd, b->fd);
}
