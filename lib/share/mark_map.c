/* SPDX-License-Identifier: MIT */
#include "share/mark_map.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/memfd.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "gmem.h"
#include "base/check.h"
#include "base/error.h"
#include "base/limit.h"
#include "base/lock.h"
#include "os/sys.h"
#include "region/dirty_pages.h"
#include "region/host_file.h"
#include "region/vm_core.h"
#include "share/extent.h"

#define CHUNK		(UINT64_C(1) << GMEM_PEER_CHUNK_SHIFT)
#define MIN_END		(UINT64_C(1) << 30)

/* ---- making and mapping ---- */

/* @message says what is where in the file. */
static int map_file(const struct gmem_message *message, int fd, struct gmem_mark_map **ret)
{
	struct gmem_mark_map *map = malloc(sizeof(*map));
	int err;

	if (!map)
		return -ENOMEM;
	*map = (struct gmem_mark_map){
		.marks = {
			.pages_end = message->size / message->page_size,
			.page_shift = (uint32_t)__builtin_ctz(message->page_size),
		},
		.end = message->size,
		.bytes = message->file_size,
	};
	err = gmem_sys_mmap(NULL, map->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0,
			    &map->hva);
	if (err) {
		free(map);
		return err;
	}
	map->marks.pages = map->hva;
	map->marks.chunks = (uint8_t *)map->hva + message->offset;
	*ret = map;
	return 0;
}

/* Memory that is added may be higher: with some room, it needs no new map each time. */
static uint64_t round_up(uint64_t end)
{
	uint64_t rounded = MIN_END;

	while (rounded < end && rounded < GMEM_GPA_END)
		rounded *= 2;
	return rounded;
}

static struct gmem_message describe(uint64_t end)
{
	struct gmem_message message = {
		.type = GMEM_WIRE_MARK,
		.size = end,
		.page_size = (uint32_t)gmem_sys_page_size(),
	};

	message.offset = end / message.page_size;
	message.file_size = message.offset + end / CHUNK;
	return message;
}

int gmem_mark_map_new(uint64_t end, struct gmem_mark_map **ret, struct gmem_message *message, int *ret_fd)
{
	int fd = gmem_host_file_memfd(0), err;

	if (fd < 0)
		return fd;
	*message = describe(round_up(end));
	err = gmem_sys_resize(fd, message->file_size);
	if (!err)
		err = gmem_sys_seal(fd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	if (!err)
		err = map_file(message, fd, ret);
	if (err)
		gmem_sys_close(fd);
	else
		*ret_fd = fd;
	return err;
}

/* Also where files of memory may shrink: nobody could tell which mark was stored last. */
static int check_file(const struct gmem_message *message, int fd)
{
	const uint64_t page = gmem_sys_page_size();
	struct gmem_extent_file file;
	int err;

	err = gmem_extent_inspect(fd, 0, message->file_size, &file);
	if (err)
		return err;
	if (message->page_size != page || file.page_size != page)
		return gmem_fail(-EINVAL, "marks for pages of 0x%" PRIx32 " bytes, in pages of 0x%" PRIx64
				 ": neither is the host's, 0x%" PRIx64, message->page_size, file.page_size, page);
	if (file.size != message->file_size || file.is_gmemfd)
		return gmem_fail(-EINVAL, "marks of 0x%" PRIx64 " bytes in a file of 0x%" PRIx64,
				 message->file_size, file.size);
	if (file.can_shrink || !(file.rights & GMEM_RIGHT_WRITE))
		return gmem_fail(-EPERM, "the file for marks %s", file.can_shrink ?
				 "can shrink under its users" : "is not to be written");
	return 0;
}

int gmem_mark_map_open(const struct gmem_message *message, int fd, struct gmem_mark_map **ret)
{
	int err;

	if (fd < 0)
		return gmem_fail_by_limit(-EMFILE, 0, "a file did not arrive, this process has no number left for it");
	err = check_file(message, fd);
	if (err)
		return err;
	err = map_file(message, fd, ret);
	return err ? gmem_fail_to_map(err, message->file_size, true, "0x%" PRIx64 " bytes for marks cannot be mapped",
				      message->file_size) : 0;
}

void gmem_mark_map_free(struct gmem_mark_map *map)
{
	if (!map)
		return;
	gmem_sys_munmap(map->hva, map->bytes);
	free(map);
}

/* ---- collecting ---- */

static inline bool is_clean(const uint8_t *bytes)
{
	return !__atomic_load_n((const uint64_t *)(const void *)bytes, __ATOMIC_RELAXED);
}

/* C2 for pages of one chunk, with the VM's lock */
static void take_pages(const struct gmem_mark_map *map, struct gmem_dirty_pages *dirty, uint64_t page,
		       uint64_t end)
{
	uint8_t *pages = map->marks.pages;

	while (page < end) {
		if (page % 8 == 0 && end - page >= 8 && is_clean(&pages[page])) {
			page += 8;
			continue;
		}
		if (__atomic_exchange_n(&pages[page], 0, __ATOMIC_ACQ_REL))
			gmem_dirty_pages_mark(dirty, page << map->marks.page_shift,
					      UINT64_C(1) << map->marks.page_shift);
		page++;
	}
}

static void take_part(const struct gmem_mark_map *map, struct gmem_vm *vm, uint64_t gpa, uint64_t last)
{
	gmem_lock_take(&vm->lock);
	if (vm->newest.dirty)
		take_pages(map, vm->newest.dirty, gpa >> map->marks.page_shift,
			   (last >> map->marks.page_shift) + 1);
	gmem_lock_drop(&vm->lock);
}

/*
 * C1 for whole chunks. Of other chunks the byte is for pages beside the range, too: it is left,
 * and the pages are looked at each time.
 */
void gmem_mark_map_take(const struct gmem_mark_map *map, struct gmem_vm *vm, uint64_t gpa, uint64_t last)
{
	uint64_t chunk, end;

	for (; gpa <= last; gpa = end + 1) {
		end = gpa | (CHUNK - 1);
		chunk = gpa / CHUNK;
		if (gpa % (8 * CHUNK) == 0 && last - gpa >= 8 * CHUNK - 1 &&
		    is_clean(&map->marks.chunks[chunk])) {
			end = gpa + (8 * CHUNK - 1);
			continue;
		}
		if (gpa % CHUNK || end > last)
			end = end < last ? end : last;
		else if (!__atomic_exchange_n(&map->marks.chunks[chunk], 0, __ATOMIC_ACQ_REL))
			continue;
		take_part(map, vm, gpa, end);
	}
}
