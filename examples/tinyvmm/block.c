/* SPDX-License-Identifier: MIT */
/* virtio-blk on a file; it handles one request after the other. */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tinyvmm.h"

#define SECTOR 512

/*
 * Copies one piece between the file and the guest, in full or with status IOERR.
 * File I/O can sleep, and a view must not be held while sleeping, so the bytes
 * go through a buffer.
 */
static int move_piece(struct vmm *vmm, uint32_t type, uint64_t gpa, uint64_t offset, size_t size,
		      uint8_t *ret_status)
{
	uint8_t bytes[4096];
	int error = 0;
	ssize_t done;

	if (type == VIRTIO_BLK_T_OUT)
		error = gmem_view_read(vmm->view, gpa, bytes, size, NULL);
	if (error < 0)
		return error;
	done = type == VIRTIO_BLK_T_OUT ? pwrite(vmm->disk_fd, bytes, size, (off_t)offset) :
					  pread(vmm->disk_fd, bytes, size, (off_t)offset);
	if (done != (ssize_t)size)
		*ret_status = VIRTIO_BLK_S_IOERR;
	else if (type == VIRTIO_BLK_T_IN)
		error = gmem_view_write(vmm->view, gpa, bytes, size, NULL);
	return error;
}

/* Copies between the file and the buffers @from to @to - 1. Returns bytes, or -errno. */
static int64_t move(struct vmm *vmm, uint32_t type, uint64_t sector,
		    const struct virtio_chain *chain, uint32_t from, uint32_t to, uint8_t *ret_status)
{
	const uint64_t end = vmm->disk_sectors * SECTOR;
	uint64_t offset = sector * SECTOR, moved = 0;

	for (uint32_t i = from; i < to; i++) {
		for (uint32_t done = 0; done < chain->buffers[i].size;) {
			uint32_t size = chain->buffers[i].size - done;
			int error;

			if (size > 4096)
				size = 4096;
			if (sector > vmm->disk_sectors || size > end - offset) {
				*ret_status = VIRTIO_BLK_S_IOERR;
				return (int64_t)moved;
			}
			error = move_piece(vmm, type, chain->buffers[i].gpa + done, offset, size,
					   ret_status);
			if (error < 0)
				return error;
			done += size;
			offset += size;
			moved += size;
		}
	}
	return (int64_t)moved;
}

/* The first buffer has a header, the last a status byte, the others have data. */
static int64_t serve(struct vmm *vmm, const struct virtio_chain *chain)
{
	const uint32_t last = chain->count - 1;
	struct virtio_blk_outhdr request;
	uint8_t status = VIRTIO_BLK_S_OK;
	int64_t moved = 0;
	int error;

	if (!chain->readable || chain->readable == chain->count ||
	    chain->buffers[0].size != sizeof(request) || chain->buffers[last].size != 1)
		return -EINVAL;
	error = gmem_view_read(vmm->view, chain->buffers[0].gpa, &request, sizeof(request), NULL);
	if (error < 0)
		return error;

	if (request.type == VIRTIO_BLK_T_IN)
		moved = move(vmm, request.type, request.sector, chain, chain->readable, last, &status);
	else if (request.type == VIRTIO_BLK_T_OUT)
		moved = move(vmm, request.type, request.sector, chain, 1, chain->readable, &status);
	else if (request.type == VIRTIO_BLK_T_FLUSH)
		status = fdatasync(vmm->disk_fd) < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
	else
		status = VIRTIO_BLK_S_UNSUPP;
	if (moved < 0)
		return moved;

	error = gmem_view_write(vmm->view, chain->buffers[last].gpa, &status, 1, NULL);
	if (error < 0)
		return error;
	return request.type == VIRTIO_BLK_T_IN ? moved + 1 : 1;
}

void block_open(struct vmm *vmm, const char *path)
{
	struct stat st;

	vmm->disk_fd = must(open(path, O_RDWR | O_CLOEXEC), path);
	must(fstat(vmm->disk_fd, &st), path);
	vmm->disk_sectors = (uint64_t)st.st_size / SECTOR;
	vmm->virtio[VIRTIO_BLOCK] = (struct virtio_device){
		.id = VIRTIO_ID_BLOCK,
		.features = (uint64_t)1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_BLK_F_FLUSH,
		/* The configuration has only its first field, the capacity. */
		.config = &vmm->disk_sectors,
		.config_size = sizeof(vmm->disk_sectors),
		.serve = serve,
	};
}
