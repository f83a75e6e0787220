/* SPDX-License-Identifier: MIT */
#include "region/region.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/check.h"
#include "base/error.h"
#include "base/limit.h"
#include "base/opts.h"
#include "caps/caps.h"
#include "caps/plan.h"
#include "os/sys.h"
#include "region/file.h"
#include "region/kept_log.h"
#include "region/ram_layout.h"
#include "region/slots.h"

#define ALL_FLAGS                                                                     \
	(GMEM_REGION_READONLY | GMEM_REGION_DIRTY_LOG | GMEM_REGION_SLOT | GMEM_REGION_HVA | \
	 GMEM_REGION_DEVICE | GMEM_REGION_CONGRUENT | GMEM_REGION_KEEP_STATE |              \
	 GMEM_REGION_RESERVED | GMEM_REGION_MEMORY_FD)

/* The host address is the caller's choice. */
#define AT_HVA (GMEM_REGION_HVA | GMEM_REGION_RESERVED)

/* ---- checks ---- */

static int take_plan(const struct gmem_vm *vm, struct gmem_region_params *params)
{
	struct gmem_plan none;

	params->plan = params->opts.plan ? params->opts.plan : &vm->default_plan;
	if (params->opts.plan || vm->has_default_plan)
		return 0;

	/*
	 * The default plan failed when the handle was made: fail again, for the
	 * sentence.
	 */
	return gmem_plan_make(&vm->caps, NULL, &none);
}

static int check_slot_flags(const struct gmem_vm *vm, const struct gmem_region_params *params)
{
	const struct gmem_backing_traits *traits = gmem_backing_traits(params->plan->backing);

	if (params->opts.flags & GMEM_REGION_DIRTY_LOG &&
	    (!traits->has_dirty_log || gmem_caps_says(&vm->caps, GMEM_CAP_DIRTY_LOG, GMEM_NO)))
		return gmem_fail(-EOPNOTSUPP, "there is no dirty log with backing \"%s\" here",
				 traits->name);

	if (params->opts.flags & GMEM_REGION_READONLY &&
	    (!traits->has_read_only || gmem_caps_says(&vm->caps, GMEM_CAP_READONLY, GMEM_NO)))
		return gmem_fail(-EOPNOTSUPP,
				 "there are no read-only memslots with backing \"%s\" here",
				 traits->name);
	return 0;
}

static int fail_too_large(uint64_t gpa, uint64_t size)
{
	uint64_t count = 0, done = 0;

	for (; done < size; count++)
		done += gmem_ram_cut(gpa + done, size - done);
	return gmem_fail(-EINVAL,
			 "size 0x%" PRIx64 " at gpa 0x%" PRIx64 ": a memslot has fewer than 0x%" PRIx64
			 " pages, so this takes %" PRIu64 " regions, cut as gmem_ram_layout() does",
			 size, gpa, GMEM_MEMSLOT_PAGES, count);
}

/* KVM has one set of attributes for all address spaces, and would apply it to each. */
static int check_space(const struct gmem_vm *vm, const struct gmem_region_params *params)
{
	const struct gmem_backing_traits *traits = gmem_backing_traits(params->plan->backing);

	if (vm->address_space == 0 || traits->attributes == GMEM_ATTRIBUTES_NONE)
		return 0;
	return gmem_fail(-EOPNOTSUPP, "backing \"%s\" is for address space 0, not %" PRIu32
			 ": what is private belongs to guest addresses, whatever the address space",
			 traits->name, vm->address_space);
}

int gmem_region_check_gpa(const struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	uint64_t bits = gmem_caps_value(&vm->caps, GMEM_CAP_ADDRESS_BITS);
	uint64_t page = gmem_sys_page_size(), end;
	int err;

	end = bits && UINT64_C(1) << bits < GMEM_GPA_END ? UINT64_C(1) << bits : GMEM_GPA_END;
	err = gmem_check_range_within("gpa", gpa, size, end, "the VM's last address");
	if (err)
		return err;

	return size / page >= GMEM_MEMSLOT_PAGES ? fail_too_large(gpa, size) : 0;
}

static int check_file(const struct gmem_vm *vm, const struct gmem_region_params *params, uint64_t size)
{
	struct gmem_file *file = params->opts.file;
	int err;

	if (!file)
		return params->opts.file_offset
			       ? gmem_fail(-EINVAL, "file offset 0x%" PRIx64 " without a file",
					   params->opts.file_offset)
			       : 0;

	if (!gmem_backing_traits(params->plan->backing)->has_file)
		return gmem_fail(-EINVAL, "the plan says \"host\": it has no use for a file");

	if (file->create_flags != params->plan->create_flags)
		return gmem_fail(-EINVAL,
				 "the file has create flags 0x%" PRIx64 ", the plan for \"%s\" 0x%" PRIx64,
				 file->create_flags, gmem_backing_name(params->plan->backing),
				 params->plan->create_flags);

	err = gmem_check_range_within("file offset", params->opts.file_offset, size, file->size,
				      "the end of the file");
	return err ? err : gmem_file_check_vm(file, vm->identity);
}

static int check_hva(const struct gmem_region_params *params, uint64_t size)
{
	int err = gmem_check_alignment(params->opts.align);

	if (err)
		return err;

	if (params->opts.flags & GMEM_REGION_CONGRUENT && !params->opts.align)
		return gmem_fail(-EINVAL, "a congruent host address needs an alignment to be alike in");

	if (!(params->opts.flags & AT_HVA))
		return 0;
	if ((params->opts.flags & AT_HVA) == AT_HVA)
		return gmem_fail(-EINVAL, "GMEM_REGION_HVA, memory at hva, and GMEM_REGION_RESERVED, address "
				 "space without any, exclude each other");

	if (params->opts.align)
		return gmem_fail(-EINVAL, "an alignment, 0x%" PRIx64 ", and an address exclude each other",
				 params->opts.align);
	if (!params->opts.hva)
		return gmem_fail(-EINVAL, "hva is NULL");
	return gmem_check_range("hva", (uintptr_t)params->opts.hva, size);
}

/* The caller has memory at hva; else the library maps some, wherever that is. */
static bool borrows_memory(const struct gmem_region_params *params)
{
	return gmem_backing_traits(params->plan->backing)->hva_source == GMEM_HVA_MEMORY &&
	       params->opts.flags & GMEM_REGION_HVA;
}

static int check_memory_fd(const struct gmem_region_params *params, uint64_t size)
{
	const struct gmem_region_opts *opts = &params->opts;

	if (opts->reserved)
		return gmem_fail(-EINVAL, "reserved is %" PRIu32 ", not 0", opts->reserved);
	if (opts->flags & GMEM_REGION_MEMORY_FD)
		return gmem_check_range_within("memory offset", opts->memory_offset, size, INT64_MAX,
					       "the largest file");
	if (opts->memory_fd || opts->memory_offset)
		return gmem_fail(-EINVAL, "memory_fd %" PRId32 ", offset 0x%" PRIx64
				 ", without GMEM_REGION_MEMORY_FD", opts->memory_fd, opts->memory_offset);
	return 0;
}

static int check_memory(struct gmem_region_params *params, uint64_t size)
{
	const struct gmem_region_opts *opts = &params->opts;
	const struct gmem_backing_traits *traits = gmem_backing_traits(params->plan->backing);
	bool has_fd = opts->flags & GMEM_REGION_MEMORY_FD;
	int err;

	params->memory = (struct gmem_host_params){ .flags = 0 };
	err = check_memory_fd(params, size);
	if (err || (!opts->memory && !has_fd))
		return err;

	if (traits->hva_source != GMEM_HVA_MEMORY)
		return gmem_fail(-EINVAL, "backing \"%s\" has no host memory, so no %s", traits->name,
				 has_fd ? "memory_fd" : "memory options");
	if (!opts->memory)
		return 0;
	if (borrows_memory(params))
		return gmem_fail(-EINVAL, "memory options are for memory that the library makes, and the memory "
				 "at hva 0x%" PRIxPTR " is the caller's", (uintptr_t)opts->hva);
	return gmem_host_memory_check(opts->memory, size, has_fd, &params->memory);
}

static int check_keep(const struct gmem_region_params *params)
{
	const struct gmem_region_opts *opts = &params->opts;

	if (opts->flags & GMEM_REGION_KEEP_STATE && !opts->file && !borrows_memory(params) &&
	    !(opts->flags & GMEM_REGION_MEMORY_FD))
		return gmem_fail(-EINVAL, "new memory has no state to keep: a file or hva is needed");
	return 0;
}

static int check_device(const struct gmem_region_params *params)
{
	const struct gmem_region_opts *opts = &params->opts;

	if (opts->flags != GMEM_REGION_DEVICE || opts->plan || opts->file || opts->file_offset ||
	    opts->align || opts->memory || opts->memory_fd || opts->memory_offset || opts->kind ||
	    opts->identity)
		return gmem_fail(-EINVAL, "a device's range has no memory, so no other option");
	return 0;
}

/* The kernel did not say what is at @hva. Without /proc it never will; but a limit is told. */
static int check_answer(const void *hva, int err)
{
	if (!gmem_is_about_limit(err))
		return 0;
	return gmem_fail_by_limit(err, 0, "what is mapped at hva 0x%" PRIxPTR " cannot be asked", (uintptr_t)hva);
}

/* Memory of the caller's is looked at once, for all that the region has to know. */
static int learn_memory(struct gmem_vm *vm, struct gmem_region_params *params, uint64_t size)
{
	const struct gmem_region_opts *opts = &params->opts;
	uint32_t wanted = GMEM_MAPPING_HUGETLB | (opts->kind == GMEM_KIND_DEFAULT ? GMEM_MAPPING_DEVICE : 0);
	int err = 0;

	params->nature_is_old = false;
	params->nature = (struct gmem_host_nature){ .page_size = 0 };
	if (borrows_memory(params))
		err = gmem_host_mapping_learn(&vm->host_maps, opts->hva, size, wanted, &params->nature);
	return check_answer(opts->hva, err);
}

/*
 * What nobody named. If the kernel does not tell whether it is a device's, it is not taken
 * for one: what is left out of images by mistake is lost.
 */
static uint32_t find_kind(const struct gmem_region_params *params)
{
	return params->nature.has_device ? GMEM_KIND_DEVICE :
	       params->opts.flags & GMEM_REGION_READONLY ? GMEM_KIND_ROM : GMEM_KIND_RAM;
}

/* Fill in the kind, and check that there can be such memory with this plan. */
static int settle_kind(struct gmem_vm *vm, struct gmem_region_params *params, uint64_t size)
{
	const struct gmem_backing_traits *backing = gmem_backing_traits(params->plan->backing);
	struct gmem_region_opts *opts = &params->opts;
	const struct gmem_kind_traits *kind;
	int err;

	if (opts->kind >= GMEM_KINDS)
		return gmem_fail(-EINVAL, "%" PRIu32 " is no kind of memory", opts->kind);
	err = learn_memory(vm, params, size);
	if (err)
		return err;
	if (opts->kind == GMEM_KIND_DEFAULT)
		opts->kind = find_kind(params);

	kind = gmem_kind_traits(opts->kind);
	if (kind->is_callers && !borrows_memory(params))
		return gmem_fail(-EINVAL, "memory of kind \"%s\" is yours: it needs GMEM_REGION_HVA, and a "
				 "backing without a guest_memfd, not \"%s\"", kind->name, backing->name);
	if (kind->is_never_private && backing->attributes != GMEM_ATTRIBUTES_NONE)
		return gmem_fail(-EINVAL, "memory of kind \"%s\" is never private, which backing \"%s\" is for",
				 kind->name, backing->name);
	return 0;
}

int gmem_region_check(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		      const struct gmem_region_opts *user_opts, struct gmem_region_params *params)
{
	int err;

	err = GMEM_COPY_OPTS(gmem_region_opts, &params->opts, user_opts, kind);
	if (!err)
		err = gmem_check_flags("flags", params->opts.flags, ALL_FLAGS);
	if (err)
		return err;

	err = gmem_region_check_gpa(vm, gpa, size);
	if (!err && params->opts.flags & GMEM_REGION_DEVICE)
		return check_device(params);
	if (!err)
		err = take_plan(vm, params);
	if (!err)
		err = check_slot_flags(vm, params);
	if (!err)
		err = check_space(vm, params);
	if (!err)
		err = check_file(vm, params, size);
	if (!err)
		err = check_hva(params, size);
	if (!err)
		err = check_memory(params, size);
	if (!err)
		err = check_keep(params);
	return err ? err : settle_kind(vm, params, size);
}

/* ---- what a region is made of ---- */

struct gmem_kvm_slot gmem_region_memslot(const struct gmem_region *region)
{
	return (struct gmem_kvm_slot){
		.number = region->slot,
		.space = region->vm->address_space,
		.flags = region->slot_flags,
		.gmemfd = region->file ? region->file->fd : -1,
		.gmemfd_offset = region->file_offset,
		.gpa = region->gpa.start,
		.size = region->gpa.size,
		.hva = (void *)(uintptr_t)region->hva.start,
	};
}

uint32_t gmem_region_slot_id(const struct gmem_region *region)
{
	return gmem_kvm_slot_id(region->vm->address_space, region->slot);
}

static int get_file(struct gmem_vm *vm, struct gmem_region *region, const struct gmem_region_params *params)
{
	if (!gmem_backing_traits(params->plan->backing)->has_file)
		return 0;

	region->file = params->opts.file;
	region->file_offset = params->opts.file_offset;
	if (!region->file)
		return gmem_file_new_of_vm(vm->identity, region->gpa.size, params->plan, &region->file);

	gmem_file_ref(region->file);
	return 0;
}

static void put_file(struct gmem_region *region)
{
	if (region->file)
		gmem_file_unref(region->file);
}

static int bind_range(struct gmem_region *region)
{
	int err;

	if (!gmem_region_traits(region)->is_bound)
		return 0;

	region->bound.start = region->file_offset;
	region->bound.size = region->gpa.size;
	err = gmem_file_bind(region->file, &region->bound);
	region->owns_range = !err;
	return err;
}

static void unbind_range(struct gmem_region *region)
{
	if (region->owns_range)
		gmem_file_unbind(region->file, &region->bound);
}

/* The host address is a mapping of the file: host and guest use the same pages. */
static bool hva_is_files(const struct gmem_region *region)
{
	return gmem_region_traits(region)->hva_source == GMEM_HVA_FILE;
}

static struct gmem_place place_of(const struct gmem_region *region)
{
	return (struct gmem_place){
		.align = region->align,
		.remainder = region->congruent ? region->gpa.start & (region->align - 1) : 0,
	};
}

/* Pin the part of a guest_memfd, and keep it out of core dumps. */
static int pin_file(struct gmem_file *file, uint64_t offset, uint64_t size,
		    const struct gmem_place *place, struct gmem_map *map)
{
	const struct gmem_host_params no_options = { .flags = 0 };
	int err;

	err = gmem_file_pin(file, offset, size, place, map);
	if (err)
		return err;
	err = gmem_host_memory_advise(&no_options, map);
	return err ? gmem_maps_unpin_failed(map, err) : 0;
}

static void put_host_file(struct gmem_region *region)
{
	gmem_host_file_unref(region->host_file);
	region->host_file = NULL;
}

static int get_host_file(struct gmem_region *region, const struct gmem_region_params *params)
{
	const struct gmem_region_opts *opts = &params->opts;
	uint64_t size = region->gpa.size;
	int err;

	if (params->memory.flags & GMEM_MEMORY_MEMFD)
		return gmem_host_file_make(size, params->memory.huge_page, &region->host_file);
	if (!(opts->flags & GMEM_REGION_MEMORY_FD))
		return 0;

	err = gmem_host_file_adopt(&region->vm->host_files, opts->memory_fd, opts->memory_offset, size,
				   &region->host_file);
	if (err)
		return err;
	region->host_offset = opts->memory_offset;
	if (region->borrows_memory || opts->flags & GMEM_REGION_READONLY ||
	    gmem_host_file_is_writable(region->host_file))
		return 0;
	err = region->host_file->facts.access.writes ? -EPERM : -EBADF;
	put_host_file(region);
	return gmem_fail(err, "memory_fd %" PRId32 " is %s, and the guest may write: GMEM_REGION_READONLY",
			 opts->memory_fd, err == -EPERM ? "sealed against writing" : "open for reading only");
}

/* Most often the memory there is what the caller wants to have in the region. */
static void fail_as_taken(const struct gmem_region *region, const void *hva)
{
	gmem_fail(-EEXIST, "something is mapped at hva 0x%" PRIxPTR ", where backing \"%s\" maps a file: to "
		  "give memory of yours with GMEM_REGION_HVA, give a plan for \"host\", too", (uintptr_t)hva,
		  gmem_backing_name(region->backing));
}

static int map_host_memory(struct gmem_region *region, const struct gmem_region_params *params)
{
	struct gmem_place place = place_of(region);
	int err;

	place.flags = params->opts.flags & GMEM_REGION_RESERVED ? GMEM_PLACE_RESERVED :
		      region->hva_chosen ? GMEM_MAP_FIXED : 0;
	place.hva = params->opts.hva;
	if (hva_is_files(region)) {
		region->map = &region->pin;
		err = pin_file(region->file, region->file_offset, region->gpa.size, &place, region->map);
		if (err == -EEXIST && place.flags == GMEM_MAP_FIXED)
			fail_as_taken(region, place.hva);
	} else {
		if (region->host_file && !gmem_host_file_is_writable(region->host_file))
			place.flags |= GMEM_MAP_READONLY;
		err = gmem_host_memory_pin(&params->memory, region->host_file, region->host_offset,
					   region->gpa.size, &place, &region->pin);
	}
	if (!err)
		region->hva.start = region->pin.hva.start;
	region->owns_memory = !err;
	return err;
}

/* What is unknown without /proc stays so: ordinary pages, no private file. */
static int take_nature(struct gmem_region *region, const struct gmem_region_params *params)
{
	struct gmem_host_nature nature = params->nature;
	int err = 0;

	/* The kind was settled when the step was made; what is mapped may be new since. */
	if (params->nature_is_old)
		err = check_answer(params->opts.hva,
				   gmem_host_mapping_learn(&region->vm->host_maps, params->opts.hva,
							   region->hva.size, GMEM_MAPPING_HUGETLB, &nature));
	if (nature.page_size)
		region->page_size = nature.page_size;
	region->mixes_pages = nature.mixes_pages;
	region->has_private_file = nature.has_private_file;
	return err;
}

/* The caller has it mapped. */
static int borrow_host_memory(struct gmem_region *region, const struct gmem_region_params *params)
{
	int err = 0;

	region->hva.start = (uintptr_t)params->opts.hva;
	if (region->host_file)
		err = gmem_host_memory_check_mapping(region->host_file, region->host_offset,
						     params->opts.hva, region->gpa.size);
	return err ? err : take_nature(region, params);
}

static int get_host_memory(struct gmem_region *region, const struct gmem_region_params *params)
{
	uint64_t huge_page;
	int err;

	region->hva.size = region->gpa.size;
	err = get_host_file(region, params);
	if (err)
		return err;

	if (region->borrows_memory) {
		err = borrow_host_memory(region, params);
	} else {
		err = map_host_memory(region, params);
		huge_page = gmem_host_memory_page(&params->memory, region->host_file);
		region->page_size = huge_page ? huge_page : region->page_size;
	}
	if (err)
		put_host_file(region);
	return err;
}

/* The region ends all the same, and the failure that may be the reason for it is told later. */
static void log_stays_mapped(struct gmem_region *region, int err)
{
	struct gmem_failure failure;

	gmem_failure_keep(&failure, gmem_error_of_sentence());
	gmem_vm_log_error(region->vm, gmem_fail_by_limit(err, 1, "hva 0x%" PRIx64 ", 0x%"
			  PRIx64 " bytes, of a region that ended, stays mapped",
			  region->pin.hva.start, region->pin.hva.size));
	gmem_failure_restore(&failure);
}

static void put_host_memory(struct gmem_region *region)
{
	int err = region->owns_memory ? gmem_maps_unpin(&region->pin) : 0;

	if (err)
		log_stays_mapped(region, err);
	put_host_file(region);
}

static int take_slot(struct gmem_vm *vm, struct gmem_region *region, const struct gmem_region_params *params)
{
	if (!(params->opts.flags & GMEM_REGION_SLOT))
		return gmem_slots_take_any(&vm->slots, &region->slot);

	region->slot = params->opts.slot;
	return gmem_slots_take(&vm->slots, region->slot);
}

/* It can be private in part. */
static bool has_states(const struct gmem_region_params *params)
{
	return !(params->opts.flags & GMEM_REGION_DEVICE) &&
	       gmem_backing_traits(params->plan->backing)->attributes != GMEM_ATTRIBUTES_NONE;
}

static uint32_t slot_flags(const struct gmem_region_params *params)
{
	uint32_t flags = 0;

	if (gmem_backing_traits(params->plan->backing)->is_bound)
		flags |= (uint32_t)KVM_MEM_GUEST_MEMFD;
	if (params->opts.flags & GMEM_REGION_READONLY)
		flags |= KVM_MEM_READONLY;
	if (params->opts.flags & GMEM_REGION_DIRTY_LOG)
		flags |= KVM_MEM_LOG_DIRTY_PAGES;
	return flags;
}

int gmem_region_check_unused(const struct gmem_vm *vm, uint64_t size,
			     const struct gmem_region_params *params)
{
	const struct gmem_region_opts *opts = &params->opts;
	int err;

	if (opts->flags & GMEM_REGION_DEVICE)
		return 0;
	err = opts->flags & GMEM_REGION_SLOT ? gmem_slots_check(&vm->slots, opts->slot) :
					       gmem_slots_check_any(&vm->slots);
	if (err || !opts->file || !gmem_backing_traits(params->plan->backing)->is_bound)
		return err;
	return gmem_file_check_unbound(opts->file, opts->file_offset, size);
}

/* Its states are behind the handle: one allocation. Most of those of a large region stay untouched. */
static struct gmem_region *allocate(uint64_t size, const struct gmem_region_params *params)
{
	/* glibc's per-thread cache serves malloc() only. */
	if (!has_states(params))
		return malloc(sizeof(struct gmem_region));
	return calloc(1, sizeof(struct gmem_region) + gmem_states_bytes(size, GMEM_PAGE_BITS));
}

static struct gmem_page_states *own_states(struct gmem_region *region)
{
	return (struct gmem_page_states *)(region + 1);
}

/* Parts that were split off may go on using the states of this region. */
void gmem_region_free(struct gmem_region *region)
{
	bool has_own = region && region->states.pages == own_states(region);

	if (region)
		gmem_states_free(&region->states);
	if (!has_own)
		free(region);
}

int gmem_region_new(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		    const struct gmem_region_params *params, struct gmem_region **ret)
{
	struct gmem_region *region = allocate(size, params);

	if (!region)
		return gmem_fail(-ENOMEM, "no memory for a region handle, and the states of 0x%" PRIx64
				 " bytes", size);

	*region = (struct gmem_region){
		.vm = vm,
		.gpa = { .start = gpa, .size = size },
		.hva = { .size = size },
		.align = params->opts.align,
		.page_size = gmem_sys_page_size(),
		.congruent = params->opts.flags & GMEM_REGION_CONGRUENT,
		.hva_chosen = params->opts.flags & AT_HVA,
		.is_device = params->opts.flags & GMEM_REGION_DEVICE,
		.kind = params->opts.kind,
		.identity = params->opts.identity,
		.data = params->opts.data,
	};
	if (has_states(params))
		gmem_states_init(&region->states, size, own_states(region), region);
	if (!region->is_device) {
		region->backing = params->plan->backing;
		region->slot_flags = slot_flags(params);
		region->wants_log = params->opts.flags & GMEM_REGION_DIRTY_LOG;
		region->borrows_memory = borrows_memory(params);
		if (!region->align && !region->hva_chosen) {
			region->align = gmem_host_memory_align(&params->memory);
			region->congruent = region->align;
		}
	}

	*ret = region;
	return 0;
}

int gmem_region_acquire(struct gmem_region *region, const struct gmem_region_params *params)
{
	struct gmem_vm *vm = region->vm;
	int err;

	/* They may be from an attempt that failed. */
	region->windows[0].code = 0;
	region->windows[1].code = 0;
	for (enum gmem_page_bit i = 0; i < GMEM_PAGE_BITS; i++)
		gmem_states_set(&region->states, i, 0, region->gpa.size, false);
	if (region->is_device)
		return 0;

	err = take_slot(vm, region, params);
	if (err)
		return err;

	err = get_file(vm, region, params);
	if (err)
		goto give_slot;

	err = bind_range(region);
	if (err)
		goto put_file;

	err = get_host_memory(region, params);
	if (err)
		goto unbind_range;

	region->owns_number = true;
	return 0;

unbind_range:
	unbind_range(region);
	region->owns_range = false;
put_file:
	put_file(region);
	region->file = NULL;
give_slot:
	gmem_slots_give(&vm->slots, region->slot);
	return err;
}

void gmem_region_detach(struct gmem_region *region)
{
	unbind_range(region);
	if (region->owns_number)
		gmem_slots_give(&region->vm->slots, region->slot);
}

void gmem_region_reattach(struct gmem_region *region)
{
	if (region->owns_number)
		region->owns_number = gmem_slots_take(&region->vm->slots, region->slot) == 0;
	if (region->owns_range)
		bind_range(region);
}

void gmem_region_release(struct gmem_region *region)
{
	put_host_memory(region);
	put_file(region);
	gmem_kept_log_drop(&region->kept_log);
}

void gmem_region_commit_hva(struct gmem_region *region)
{
	if (!region->is_device && !region->borrows_memory)
		gmem_range_insert(&region->vm->hvas, &region->hva);
}

void gmem_region_commit_no_hva(struct gmem_region *region)
{
	if (!region->is_device && !region->borrows_memory)
		gmem_range_remove(&region->vm->hvas, &region->hva);
}

struct gmem_region *gmem_region_copy(const struct gmem_region *region)
{
	struct gmem_region *copy = malloc(sizeof(*copy));

	if (!copy) {
		gmem_fail(-ENOMEM, "no memory for a region handle");
		return NULL;
	}

	/* Not the rest: other threads may change it, with the locks of others. */
	*copy = (struct gmem_region){
		.vm = region->vm,
		.gpa = { .start = region->gpa.start, .size = region->gpa.size },
		.hva = { .start = region->hva.start, .size = region->hva.size },
		.file = region->file,
		.file_offset = region->file_offset,
		.host_file = region->host_file,
		.host_offset = region->host_offset,
		.align = region->align,
		.page_size = region->page_size,
		.mixes_pages = region->mixes_pages,
		.slot = region->slot,
		.backing = region->backing,
		.kind = region->kind,
		.identity = region->identity,
		.congruent = region->congruent,
		.has_private_file = region->has_private_file,
		.hva_chosen = region->hva_chosen,
		.borrows_memory = region->borrows_memory,
		.is_device = region->is_device,
		.read_only = region->read_only,
		.wants_log = region->wants_log,
	};
	copy->map = region->map ? &copy->pin : NULL;
	return copy;
}

void gmem_region_hand_over_memory(struct gmem_region *region, struct gmem_region *stuck)
{
	if (region->owns_memory)
		gmem_maps_move_pin(&region->pin, &stuck->pin);
	stuck->owns_memory = region->owns_memory;
	region->owns_memory = false;
}

void gmem_region_hand_over(struct gmem_region *region, struct gmem_region *stuck)
{
	if (region->file)
		gmem_file_ref(region->file);
	gmem_host_file_ref(region->host_file);
	if (region->owns_range)
		gmem_file_move_bound(region->file, &region->bound, &stuck->bound);

	stuck->hva = region->hva;
	stuck->owns_range = region->owns_range;
	region->owns_range = false;
	gmem_region_hand_over_memory(region, stuck);
}

/* ---- split ---- */

/* A huge page in two regions could be given back by neither. */
static int check_between_pages(const struct gmem_region *region, uint64_t offset)
{
	char text[GMEM_SIZE_TEXT];

	if ((region->hva.start + offset) % region->page_size == 0)
		return 0;
	gmem_size_text(region->page_size, text);
	return gmem_fail(-EINVAL, "offset 0x%" PRIx64 " of the region at gpa 0x%" PRIx64
			 " is inside a huge page of %s", offset, region->gpa.start, text);
}

int gmem_region_prepare_split(const struct gmem_region *region, uint64_t offset,
			      struct gmem_region *lower, struct gmem_region *upper)
{
	uint32_t slot = 0;
	int err;

	if (!region->is_device) {
		err = check_between_pages(region, offset);
		if (err)
			return err;
		err = gmem_slots_take_any(&region->vm->slots, &slot);
		if (err)
			return err;
	}

	*upper = *lower;
	gmem_states_prepare_split(&region->states, offset, &upper->states);
	upper->map = lower->map ? &upper->pin : NULL;
	upper->slot = slot;
	upper->owns_number = !region->is_device;
	upper->file_offset += offset;
	upper->host_offset += offset;
	upper->gpa.start += offset;
	upper->gpa.size -= offset;
	upper->hva.start += offset;
	upper->hva.size = upper->gpa.size;
	lower->gpa.size = offset;
	lower->hva.size = offset;
	return 0;
}

void gmem_region_undo_split(struct gmem_region *upper)
{
	gmem_states_free(&upper->states);
	if (upper->owns_number)
		gmem_slots_give(&upper->vm->slots, upper->slot);
}

void gmem_region_commit_split(struct gmem_region *region, struct gmem_region *upper)
{
	struct gmem_vm *vm = region->vm;
	uint64_t offset = region->gpa.size - upper->gpa.size;

	gmem_states_commit_split(&region->states, &upper->states);
	upper->data = __atomic_load_n(&region->data, __ATOMIC_ACQUIRE);
	gmem_range_split(&vm->regions, &region->gpa, offset, &upper->gpa);
	if (region->is_device)
		return;

	if (region->file)
		gmem_file_ref(region->file);
	gmem_host_file_ref(region->host_file);
	if (region->owns_range)
		gmem_file_split_bound(region->file, &region->bound, offset, &upper->bound);
	if (region->owns_memory)
		gmem_maps_split_pin(&region->pin, offset, &upper->pin);
	if (region->borrows_memory)
		region->hva.size = offset;
	else
		gmem_range_split(&vm->hvas, &region->hva, offset, &upper->hva);
	upper->owns_range = region->owns_range;
	upper->owns_memory = region->owns_memory;
}

/* ---- rebind ---- */

int gmem_region_check_binding(const struct gmem_region *region, const struct gmem_binding *to)
{
	int err;

	if (!to->file)
		return gmem_fail(-EINVAL, "file is NULL");

	if (!region->file)
		return gmem_fail(-EOPNOTSUPP, "a region %s%s has no file",
				 region->is_device ? "of a device" : "with backing ",
				 region->is_device ? "" : gmem_backing_name(region->backing));

	if (region->hva_chosen)
		return gmem_fail(-EOPNOTSUPP, "the region's host address 0x%" PRIx64
				 " was chosen by the caller and cannot change", region->hva.start);

	if (to->file->create_flags != region->file->create_flags)
		return gmem_fail(-EINVAL,
				 "the file has create flags 0x%" PRIx64 ", the region's 0x%" PRIx64,
				 to->file->create_flags, region->file->create_flags);

	err = gmem_check_range_within("file offset", to->offset, region->gpa.size, to->file->size,
				      "the end of the file");
	return err ? err : gmem_file_check_vm(to->file, region->vm->identity);
}

int gmem_region_prepare_rebind(struct gmem_region *region, const struct gmem_binding *to,
			       struct gmem_region *after)
{
	const struct gmem_place place = place_of(region);
	int err = 0;

	gmem_file_ref(to->file);
	after->file = to->file;
	after->file_offset = to->offset;
	if (after->map) {
		err = pin_file(to->file, to->offset, region->gpa.size, &place, after->map);
		if (err)
			goto put_file;
		gmem_range_set_start(&after->hva, after->map->hva.start);
		after->owns_memory = true;
	}

	/* The new range may overlap the old one. */
	unbind_range(region);
	err = bind_range(after);
	if (err)
		goto put_memory;
	return 0;

put_memory:
	if (region->owns_range)
		bind_range(region);
	put_host_memory(after);
	after->owns_memory = false;
put_file:
	put_file(after);
	after->file = NULL;
	return err;
}

void gmem_region_undo_rebind(struct gmem_region *region, struct gmem_region *after)
{
	unbind_range(after);
	after->owns_range = false;
	if (region->owns_range)
		bind_range(region);
}

void gmem_region_commit_rebind(struct gmem_region *region, struct gmem_region *after)
{
	struct gmem_file *old_file = region->file;
	uint64_t old_offset = region->file_offset;
	struct gmem_map old_pin;

	if (after->owns_range)
		gmem_file_move_bound(after->file, &after->bound, &region->bound);
	after->owns_range = false;

	if (region->map) {
		gmem_region_commit_no_hva(region);
		gmem_maps_move_pin(region->map, &old_pin);
		gmem_maps_move_pin(after->map, region->map);
		gmem_maps_move_pin(&old_pin, after->map);
		gmem_range_set_start(&region->hva, region->map->hva.start);
		gmem_region_commit_hva(region);
	}
	region->file = after->file;
	region->file_offset = after->file_offset;
	after->file = old_file;
	after->file_offset = old_offset;
}

/* ---- what a region is ---- */

GMEM_API uint64_t gmem_region_gpa(const struct gmem_region *region)
{
	return region ? __atomic_load_n(&region->gpa.start, __ATOMIC_RELAXED) : 0;
}

GMEM_API uint64_t gmem_region_size(const struct gmem_region *region)
{
	return region ? __atomic_load_n(&region->gpa.size, __ATOMIC_RELAXED) : 0;
}

GMEM_API void *gmem_region_hva(const struct gmem_region *region)
{
	return region ? (void *)(uintptr_t)__atomic_load_n(&region->hva.start, __ATOMIC_RELAXED)
		      : NULL;
}

GMEM_API uint32_t gmem_region_slot(const struct gmem_region *region)
{
	return region && !region->is_device ? gmem_region_slot_id(region) : UINT32_MAX;
}

GMEM_API uint32_t gmem_region_backing(const struct gmem_region *region)
{
	return region ? region->backing : GMEM_BACKING_NONE;
}

GMEM_API uint32_t gmem_region_kind(const struct gmem_region *region)
{
	return region ? region->kind : GMEM_KIND_DEFAULT;
}

GMEM_API uint64_t gmem_region_identity(const struct gmem_region *region)
{
	return region ? region->identity : 0;
}

GMEM_API struct gmem_file *gmem_region_file(const struct gmem_region *region,
					    uint64_t *ret_offset)
{
	if (!region || !region->file)
		return NULL;

	if (ret_offset)
		*ret_offset = region->file_offset;
	return region->file;
}
