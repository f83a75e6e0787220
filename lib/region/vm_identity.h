/* SPDX-License-Identifier: MIT */
/*
 * vm_identity: which VM it is.
 *
 * The number of a VM fd says little: closed, it can be another VM's a moment later. An
 * open fd is what cannot be mistaken, so whoever has to know a VM again keeps a duplicate
 * of its fd. All in the process share one for a VM, because fds are the process's and
 * limited. It keeps the VM alive, as every guest_memfd of the VM does anyway.
 *
 * Not where the kernel does not tell whether two fds are one VM, as kernels before 6.10
 * without kcmp(2) and some sandboxes: there every identity is one of its own.
 */
#ifndef GMEM_VM_IDENTITY_H
#define GMEM_VM_IDENTITY_H

#include <stdbool.h>
#include <stdint.h>

/*
 * An open guest_memfd, and what the library knows of it, because it made the file or asked
 * the kernel. What a caller says of a file is not known.
 */
struct gmem_vm_file {
	int fd;
	bool is_of_vm;		/* atomic; else it is on the VM's list because a caller says so */
	uint64_t create_flags;	/* as the file was made, or as they were found */
	uint64_t certain;	/* the bits of @create_flags that cannot be others; 0: nobody looked */
	struct gmem_vm_file *next;
	struct gmem_vm_file **link;	/* what points to it */
};

/* What all records say of one file */
struct gmem_vm_file_facts {
	bool is_of_vm;
	bool is_of_other;
	int other;		/* the number of the other VM's fd, for sentences only */
	uint64_t create_flags;
	uint64_t certain;	/* as in struct gmem_vm_file */
};

struct gmem_vm_identity {
	int fd;			/* the library's own */
	int asked;		/* the fd for ioctls: @fd, unless the caller's alone takes them */
	int number;		/* of the caller's, when it was duplicated: for sentences only */
	unsigned int users;	/* atomic; 1 or more on the list, from 0 to 1 and back with its lock */
	struct gmem_vm_identity *next;
	struct gmem_vm_file *files;
};

/*
 * Finds the identity of the VM behind @vm_fd, or makes it; -errno with a sentence, also if
 * the kernel says that this is no VM.
 */
int gmem_vm_identity_get(int vm_fd, struct gmem_vm_identity **ret);
/* The caller is a user. Needs no lock. */
struct gmem_vm_identity *gmem_vm_identity_ref(struct gmem_vm_identity *identity);
/* @identity may be NULL. */
void gmem_vm_identity_unref(struct gmem_vm_identity *identity);
/* @file stays on the list until it is taken off, before its fd is closed. */
void gmem_vm_identity_add_file(struct gmem_vm_identity *identity, struct gmem_vm_file *file);
void gmem_vm_identity_remove_file(struct gmem_vm_file *file);
/* Records that @file, on a list or not, is of its VM. Needs no lock. */
static inline void gmem_vm_identity_prove_file(struct gmem_vm_file *file)
{
	if (!__atomic_load_n(&file->is_of_vm, __ATOMIC_RELAXED))
		__atomic_store_n(&file->is_of_vm, true, __ATOMIC_RELAXED);
}

/*
 * Collects what is known of the file behind @fd, for @identity or NULL. That is nothing if
 * the kernel does not tell whether @fd is a duplicate of one on a list.
 */
void gmem_vm_identity_find_file(const struct gmem_vm_identity *identity, int fd,
				struct gmem_vm_file_facts *ret);
/* Returns 1 if both are one VM and 0 if not; -errno if the kernel does not tell. */
int gmem_vm_identity_same(const struct gmem_vm_identity *a, const struct gmem_vm_identity *b);

#endif
