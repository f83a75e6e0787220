/* SPDX-License-Identifier: MIT */
/*
 * host_mapping: what the kernel says is mapped at host addresses.
 *
 * Two questions, of different price. The first costs a system call or two for each
 * mapping. The second reads /proc/self/smaps, for which the kernel walks the page tables
 * of the whole process: at most once for a transfer or a report, never once for each
 * piece of memory or for a small discard.
 *
 * Answers are true at their moment; who keeps the mappings as they are is the caller's
 * business. Without /proc there is no answer: what is not known is not assumed.
 */
#ifndef GMEM_HOST_MAPPING_H
#define GMEM_HOST_MAPPING_H

#include <stdbool.h>
#include <stdint.h>

#define GMEM_MAPPING_SHARED		(1u << 0)
/* Of a file, also of the nameless one behind shared anonymous memory */
#define GMEM_MAPPING_FILE		(1u << 1)
/* That file is nobody's but of these mappings: the memory is anonymous. */
#define GMEM_MAPPING_NAMELESS		(1u << 7)
/* Its pages are huge pages of hugetlb. */
#define GMEM_MAPPING_HUGETLB		(1u << 2)
/* VM_IO or VM_PFNMAP: a device's registers or memory */
#define GMEM_MAPPING_DEVICE		(1u << 3)
#define GMEM_MAPPING_LOCKED		(1u << 4)
/* userfaultfd is asked for pages that are not there, or only not mapped yet. */
#define GMEM_MAPPING_UFFD_MISSING	(1u << 5)
#define GMEM_MAPPING_UFFD_MINOR		(1u << 6)

/* MAP_NORESERVE: huge pages are not set aside for it. */
#define GMEM_MAPPING_NORESERVE		(1u << 8)

/* What only the second question tells */
#define GMEM_MAPPING_IN_FULL (GMEM_MAPPING_DEVICE | GMEM_MAPPING_LOCKED | GMEM_MAPPING_UFFD_MISSING | \
			      GMEM_MAPPING_UFFD_MINOR | GMEM_MAPPING_NORESERVE)

struct gmem_host_mapping {
	uint64_t start;		/* host addresses: of the whole mapping */
	uint64_t end;		/* the first that is not in it */
	uint64_t page_size;	/* of the memory, bytes; 0: not known, perhaps hugetlb */
	uint64_t device;	/* of the file, as st_dev; and st_ino; 0: no file */
	uint64_t inode;
	uint64_t offset;	/* in the file, of @start */
	uint64_t swap;		/* bytes in swap, shared memory's too; of the second question */
	int prot;		/* PROT_* */
	uint32_t flags;		/* GMEM_MAPPING_* */
	uint32_t known;		/* flags that would be set if they were true */
};

/* Anything but 0 ends the walk. */
typedef int (*gmem_host_mapping_fn)(void *data, const struct gmem_host_mapping *mapping);

/*
 * Call @fn, in order, for each mapping with an address in the range; where nothing is mapped,
 * nothing is told. @in_full asks the second question. Returns 0, what @fn returned, or the
 * kernel's errno without a sentence. A mapping that another thread changes meanwhile may be
 * told twice or in parts. Needs no lock.
 */
int gmem_host_mappings(const void *hva, uint64_t size, bool in_full, gmem_host_mapping_fn fn,
		       void *data);
/*
 * Tell by one call that the memory at @hva is neither a device's nor locked nor hugetlb's; false
 * says nothing.
 */
bool gmem_host_mapping_is_ordinary(uint64_t hva);
/* A private mapping of a file: pages that were written are its own, the others the file's. */
static inline bool gmem_host_mapping_is_private_file(const struct gmem_host_mapping *mapping)
{
	return mapping->flags & GMEM_MAPPING_FILE &&
	       !(mapping->flags & (GMEM_MAPPING_SHARED | GMEM_MAPPING_NAMELESS));
}

/*
 * /proc/self/maps, which stays open for whoever asks often: opening it takes longer than asking.
 * In a child of fork() it tells of the parent; the VM refuses the child its memory (-EIO). Zeroed,
 * it is not open.
 */
struct gmem_host_maps {
	int opened;	/* atomic: the fd plus 1, or 0 */
};

void gmem_host_maps_close(struct gmem_host_maps *maps);

/* What the memory of a range is */
struct gmem_host_nature {
	/*
	 * Of the largest page, bytes: that of hugetlb, or the host's; 0: not known, or nothing is
	 * mapped. Huge pages that the kernel made on its own (THP) are split when needed and do not
	 * count.
	 */
	uint64_t page_size;
	bool mixes_pages;	/* there are pages of several sizes */
	bool has_device;	/* a device's memory is part of it */
	bool has_private_file;	/* a private mapping of a file is part of it */
};

/*
 * Learn all of that in one look. Asks the second question only if the first leaves open which
 * mappings are of @wanted, GMEM_MAPPING_DEVICE or _HUGETLB or both, as it does for locked memory.
 * @maps: opened if need be; NULL: a file of this call's.
 * -errno: not all that is wanted can be known, and @ret has what is.
 */
int gmem_host_mapping_learn(struct gmem_host_maps *maps, const void *hva, uint64_t size,
			    uint32_t wanted, struct gmem_host_nature *ret);

#endif
