/* SPDX-License-Identifier: MIT */
/* Looking at the kernel's state from outside */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_internal.h"

/* --------------------------------------------------------------- snapshot -- */

struct fd_state {
	int fd;
	struct handle handle;
};

struct slot_state {
	int vm;
	struct fake_slot slot;
};

struct private_state {
	int vm;
	struct span span;
};

struct fake_snapshot {
	size_t private_count;
	size_t fd_count;
	size_t slot_count;
	size_t map_count;
	struct fd_state *fds;
	struct slot_state *slots;
	struct mapping *maps;
	struct private_state *privates;
};

static void snapshot_slots(struct fake_snapshot *s)
{
	const struct vm *vm;
	struct slot_state *state;
	size_t i, count = 0;

	for (vm = kernel.vms; vm; vm = vm->next)
		count += vm->by_gpa.count;
	s->slots = must(calloc(count + 1, sizeof(*s->slots)));

	for (vm = kernel.vms; vm; vm = vm->next) {
		for (i = 0; i < vm->by_gpa.count; i++) {
			state = &s->slots[s->slot_count++];
			state->vm = vm->id;
			state->slot = vm->slots[vm->by_gpa.v[i].number];
		}
	}
}

static void snapshot_privates(struct fake_snapshot *s)
{
	const struct vm *vm;
	const struct file *file;
	size_t i, count = 0;

	for (vm = kernel.vms; vm; vm = vm->next)
		count += vm->privates.count;
	for (file = kernel.files; file; file = file->next)
		count += file->privates.count;
	s->privates = must(calloc(count + 1, sizeof(*s->privates)));

	for (vm = kernel.vms; vm; vm = vm->next)
		for (i = 0; i < vm->privates.count; i++)
			s->privates[s->private_count++] =
				(struct private_state){ vm->id, vm->privates.v[i] };
	for (file = kernel.files; file; file = file->next)
		for (i = 0; i < file->privates.count; i++)
			s->privates[s->private_count++] =
				(struct private_state){ file->id, file->privates.v[i] };
}

struct fake_snapshot *fake_snapshot(void)
{
	struct fake_snapshot *s;
	int fd;

	enter();
	s = must(calloc(1, sizeof(*s)));
	s->fds = must(calloc(MAX_FDS, sizeof(*s->fds)));
	for (fd = 0; fd < MAX_FDS; fd++)
		if (kernel.fds[fd].kind != CLOSED)
			s->fds[s->fd_count++] = (struct fd_state){ fd, kernel.fds[fd] };
	snapshot_slots(s);
	snapshot_privates(s);
	s->map_count = kernel.map_count;
	s->maps = must(calloc(s->map_count + 1, sizeof(*s->maps)));
	if (s->map_count)
		memcpy(s->maps, kernel.maps, s->map_count * sizeof(*s->maps));
	leave(0);
	return s;
}

void fake_forget(struct fake_snapshot *s)
{
	free(s->fds);
	free(s->slots);
	free(s->maps);
	free(s->privates);
	free(s);
}

static bool same_fds(const struct fake_snapshot *a, const struct fake_snapshot *b)
{
	const struct handle *x, *y;
	size_t i;

	if (a->fd_count != b->fd_count)
		return false;
	for (i = 0; i < a->fd_count; i++) {
		x = &a->fds[i].handle;
		y = &b->fds[i].handle;
		if (a->fds[i].fd != b->fds[i].fd || x->kind != y->kind ||
		    x->cloexec != y->cloexec || x->vm != y->vm || x->file != y->file)
			return false;
	}
	return true;
}

static bool same_slots(const struct fake_snapshot *a, const struct fake_snapshot *b)
{
	const struct fake_slot *x, *y;
	size_t i;

	if (a->slot_count != b->slot_count)
		return false;
	for (i = 0; i < a->slot_count; i++) {
		x = &a->slots[i].slot;
		y = &b->slots[i].slot;
		if (a->slots[i].vm != b->slots[i].vm || x->number != y->number ||
		    x->flags != y->flags || x->gpa != y->gpa || x->size != y->size ||
		    x->hva != y->hva || x->offset != y->offset || x->file != y->file)
			return false;
	}
	return true;
}

static bool same_maps(const struct fake_snapshot *a, const struct fake_snapshot *b)
{
	const struct mapping *x, *y;
	size_t i;

	if (a->map_count != b->map_count)
		return false;
	for (i = 0; i < a->map_count; i++) {
		x = &a->maps[i];
		y = &b->maps[i];
		if (x->start != y->start || x->size != y->size || x->offset != y->offset ||
		    x->file != y->file || x->prot != y->prot)
			return false;
	}
	return true;
}

static bool same_privates(const struct fake_snapshot *a, const struct fake_snapshot *b)
{
	const struct private_state *x, *y;
	size_t i;

	if (a->private_count != b->private_count)
		return false;
	for (i = 0; i < a->private_count; i++) {
		x = &a->privates[i];
		y = &b->privates[i];
		if (x->vm != y->vm || x->span.start != y->span.start || x->span.end != y->span.end)
			return false;
	}
	return true;
}

static void print_snapshot(const char *when, const struct fake_snapshot *s)
{
	const struct fake_slot *slot;
	size_t i;

	fprintf(stderr, "%s: %zu fds:", when, s->fd_count);
	for (i = 0; i < s->fd_count; i++)
		fprintf(stderr, " %d", s->fds[i].fd);
	fprintf(stderr, "\n  %zu slots:", s->slot_count);
	for (i = 0; i < s->slot_count && i < 16; i++) {
		slot = &s->slots[i].slot;
		fprintf(stderr, " %u=[%#llx+%#llx] flags %u file %d", slot->number,
			(unsigned long long)slot->gpa, (unsigned long long)slot->size,
			slot->flags, slot->file);
	}
	fprintf(stderr, "\n  %zu private:", s->private_count);
	for (i = 0; i < s->private_count && i < 16; i++)
		fprintf(stderr, " [%#llx, %#llx)", (unsigned long long)s->privates[i].span.start,
			(unsigned long long)s->privates[i].span.end);
	fprintf(stderr, "\n  %zu mappings:", s->map_count);
	for (i = 0; i < s->map_count && i < 16; i++)
		fprintf(stderr, " [%#llx+%#llx]", (unsigned long long)s->maps[i].start,
			(unsigned long long)s->maps[i].size);
	fprintf(stderr, "\n");
}

bool fake_equal(struct fake_snapshot *before)
{
	struct fake_snapshot *now = fake_snapshot();
	bool same = same_fds(before, now) && same_slots(before, now) &&
		    same_maps(before, now) && same_privates(before, now);

	if (!same) {
		print_snapshot("before", before);
		print_snapshot("now", now);
	}
	fake_forget(before);
	fake_forget(now);
	return same;
}

/* -------------------------------------------------------------- questions -- */

bool fake_get_slot(int vm_fd, uint32_t number, struct fake_slot *ret)
{
	const struct vm *vm;
	bool found;

	enter();
	vm = vm_of(vm_fd);
	found = vm && number >> 16 < SPACES && vm->slots[slot_index(number)].size;
	if (found)
		*ret = vm->slots[slot_index(number)];
	return leave(found);
}

unsigned fake_slot_count(int vm_fd)
{
	const struct vm *vm;

	enter();
	vm = vm_of(vm_fd);
	return (unsigned)leave(vm ? (int)vm->by_gpa.count : 0);
}

bool fake_is_private(int vm_fd, uint64_t gpa)
{
	bool ret;

	enter();
	ret = span_has(&((struct vm *)must(vm_of(vm_fd)))->privates, gpa);
	leave(0);
	return ret;
}

bool fake_is_file_private(int fd, uint64_t offset)
{
	const struct handle *h;
	bool ret;

	enter();
	h = handle_of(fd);
	ret = h && h->kind == GMEM && span_has(&h->file->privates, offset);
	leave(0);
	return ret;
}

void fake_pin(int fd, uint64_t offset, unsigned times)
{
	struct handle *h;

	enter();
	h = must(handle_of(fd));
	h->file->pinned = offset;
	h->file->pinned_times = times;
	leave(0);
}

void fake_set_private(int vm_fd, uint64_t gpa, uint64_t size, bool is_private)
{
	enter();
	span_set(&((struct vm *)must(vm_of(vm_fd)))->privates, gpa, gpa + size, is_private);
	leave(0);
}

int fake_add_slot(int vm_fd, uint32_t number, uint64_t gpa, uint64_t size)
{
	const struct slot_args a = { .number = number, .gpa = gpa, .size = size };
	int err;

	enter();
	err = set_slot(must(vm_of(vm_fd)), &a);
	return leave(err);
}

bool fake_vm_exists(int vm_fd)
{
	enter();
	return leave(vm_of(vm_fd) != NULL);
}

int fake_file_of_fd(int fd)
{
	const struct handle *h;

	enter();
	h = handle_of(fd);
	return leave(h && h->kind == GMEM ? h->file->id : 0);
}

int fake_file_at(const void *hva, uint64_t *ret_offset)
{
	const struct mapping *map;

	enter();
	map = map_at((uintptr_t)hva);
	if (!map || !map->file)
		return leave(0);
	*ret_offset = map->offset + ((uintptr_t)hva - map->start);
	return leave(map->file->id);
}

int fake_protection_at(const void *hva)
{
	const struct mapping *map;

	enter();
	map = map_at((uintptr_t)hva);
	return leave(map ? map->prot : -1);
}

bool fake_is_allocated(int fd, uint64_t offset, uint64_t size)
{
	const struct handle *h;
	bool is_allocated;

	enter();
	h = handle_of(fd);
	is_allocated = h && h->kind == GMEM;
	for (uint64_t i = offset / fake.page_size;
	     is_allocated && i < (offset + size) / fake.page_size; i++)
		is_allocated = i < TRACKED_PAGES && h->file->allocated[i];
	return leave(is_allocated);
}

unsigned fake_open_fds(void)
{
	unsigned count = 0;
	int fd;

	enter();
	for (fd = 0; fd < MAX_FDS; fd++)
		count += kernel.fds[fd].kind != CLOSED;
	return (unsigned)leave((int)count);
}

unsigned fake_open_mappings(void)
{
	enter();
	return (unsigned)leave((int)kernel.map_count);
}
