/* SPDX-License-Identifier: MIT */
/*
 * virtio-mem: the VMM asks the guest to use more memory or less, and the guest
 * plugs and unplugs blocks. Memory is added in pieces, each of which is a region
 * of libgmem. A piece is added before the guest is told of it, and removed when
 * its last block is unplugged.
 */
#include <errno.h>
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_mem.h>

#include "tinyvmm.h"

#define BLOCKS_PER_PIECE (PIECE_SIZE / BLOCK_SIZE)

_Static_assert(BLOCKS_PER_PIECE == 64, "a bit for each block of a piece");

/* Removes pieces from the top that are neither requested nor used any more. */
static void drop_pieces(struct vmm *vmm)
{
	struct hotplug_state *h = &vmm->devices.hotplug;

	while (h->config.usable_region_size > h->config.requested_size) {
		const unsigned int top =
			(unsigned int)(h->config.usable_region_size / PIECE_SIZE - 1);

		if (h->plugged[top])
			return;
		memory_remove_piece(vmm, top);
		h->config.usable_region_size -= PIECE_SIZE;
		say("%" PRIu64 " MiB of hot-added memory are left",
		    (uint64_t)h->config.usable_region_size / MIB);
	}
}

static bool is_plugged(const struct hotplug_state *h, uint64_t block)
{
	return h->plugged[block / BLOCKS_PER_PIECE] >> block % BLOCKS_PER_PIECE & 1;
}

/* Unplugged blocks go back to the host. */
static void give_back(struct vmm *vmm, uint64_t offset, uint64_t size)
{
	if (size)
		gmem_must(gmem_vm_discard(vmm->memory, HOTPLUG_BASE + offset, size, NULL, NULL),
			  "giving memory back");
}

static uint64_t count_plugged(const struct hotplug_state *h, uint64_t first, uint64_t count)
{
	uint64_t plugged = 0;

	for (uint64_t block = first; block < first + count; block++)
		plugged += is_plugged(h, block);
	return plugged;
}

static void flip(struct hotplug_state *h, uint64_t first, uint64_t count)
{
	for (uint64_t block = first; block < first + count; block++)
		h->plugged[block / BLOCKS_PER_PIECE] ^= (uint64_t)1 << block % BLOCKS_PER_PIECE;
}

/* Plugs or unplugs a range, all of which must be in the other state, or returns its state. */
static uint16_t answer(struct vmm *vmm, const struct virtio_mem_req *request, uint16_t *ret_state)
{
	struct hotplug_state *h = &vmm->devices.hotplug;
	const uint64_t offset = request->u.plug.addr - h->config.addr;
	const uint64_t first = offset / BLOCK_SIZE, count = request->u.plug.nb_blocks;
	uint64_t plugged;

	/* The receiver of a migration has the memory that there was when it began. */
	if (vmm->migration && request->type != VIRTIO_MEM_REQ_STATE)
		return VIRTIO_MEM_RESP_BUSY;
	if (request->type == VIRTIO_MEM_REQ_UNPLUG_ALL) {
		for (unsigned int i = 0; i < PIECES; i++)
			h->plugged[i] = 0;
		h->config.plugged_size = 0;
		give_back(vmm, 0, h->config.usable_region_size);
		return VIRTIO_MEM_RESP_ACK;
	}
	if (offset % BLOCK_SIZE || !count || offset >= h->config.usable_region_size ||
	    count > (h->config.usable_region_size - offset) / BLOCK_SIZE)
		return VIRTIO_MEM_RESP_ERROR;

	plugged = count_plugged(h, first, count);
	if (request->type == VIRTIO_MEM_REQ_STATE) {
		*ret_state = !plugged ? VIRTIO_MEM_STATE_UNPLUGGED :
			     plugged == count ? VIRTIO_MEM_STATE_PLUGGED : VIRTIO_MEM_STATE_MIXED;
		return VIRTIO_MEM_RESP_ACK;
	}
	if (request->type == VIRTIO_MEM_REQ_PLUG) {
		if (plugged)
			return VIRTIO_MEM_RESP_ERROR;
		if (h->config.plugged_size + count * BLOCK_SIZE > h->config.requested_size)
			return VIRTIO_MEM_RESP_NACK;
		h->config.plugged_size += count * BLOCK_SIZE;
	} else if (request->type == VIRTIO_MEM_REQ_UNPLUG && plugged == count) {
		h->config.plugged_size -= count * BLOCK_SIZE;
		give_back(vmm, offset, count * BLOCK_SIZE);
	} else {
		return VIRTIO_MEM_RESP_ERROR;
	}
	flip(h, first, count);
	return VIRTIO_MEM_RESP_ACK;
}

static int64_t serve(struct vmm *vmm, const struct virtio_chain *chain)
{
	struct virtio_mem_req request = { 0 };
	struct virtio_mem_resp response = { 0 };
	uint16_t state = 0;
	int error;

	if (chain->count != 2 || chain->readable != 1 ||
	    chain->buffers[0].size != sizeof(request) || chain->buffers[1].size != sizeof(response))
		return -EINVAL;
	error = gmem_view_read(vmm->view, chain->buffers[0].gpa, &request, sizeof(request), NULL);
	if (error < 0)
		return error;

	response.type = answer(vmm, &request, &state);
	response.u.state.state = state;
	drop_pieces(vmm);
	error = gmem_view_write(vmm->view, chain->buffers[1].gpa, &response, sizeof(response), NULL);
	return error < 0 ? error : (int64_t)sizeof(response);
}

/* Asks the guest to use one piece more, or one less. */
void hotplug_request(struct vmm *vmm, bool grow)
{
	struct virtio_mem_config *config = &vmm->devices.hotplug.config;
	const unsigned int piece = (unsigned int)(config->requested_size / PIECE_SIZE);

	if (vmm->migration) {
		say("not while the guest migrates");
		return;
	}
	if (grow ? piece == PIECES : piece == 0) {
		say("hot-added memory is from 0 to %" PRIu64 " MiB", PIECES * PIECE_SIZE / MIB);
		return;
	}
	if (grow && !vmm->pieces[piece] && memory_add_piece(vmm, piece) < 0) {
		say("no memory to add: %s", gmem_last_error());
		return;
	}
	if (grow && config->usable_region_size == config->requested_size)
		config->usable_region_size += PIECE_SIZE;
	config->requested_size = grow ? config->requested_size + PIECE_SIZE :
					config->requested_size - PIECE_SIZE;
	drop_pieces(vmm);
	say("the guest is asked to use %" PRIu64 " MiB of hot-added memory",
	    (uint64_t)config->requested_size / MIB);
	virtio_config_changed(vmm, VIRTIO_MEMORY);
}

/* Adds the pieces that existed when the snapshot was made. */
void hotplug_restore(struct vmm *vmm)
{
	const uint64_t size = vmm->devices.hotplug.config.usable_region_size;

	for (unsigned int piece = 0; piece < size / PIECE_SIZE; piece++)
		gmem_must(memory_add_piece(vmm, piece), "hot-added memory");
}

void hotplug_init(struct vmm *vmm)
{
	vmm->devices.hotplug.config = (struct virtio_mem_config){
		.block_size = BLOCK_SIZE,
		.addr = HOTPLUG_BASE,
		.region_size = PIECES * PIECE_SIZE,
	};
	vmm->virtio[VIRTIO_MEMORY] = (struct virtio_device){
		.id = VIRTIO_ID_MEM,
		.features = (uint64_t)1 << VIRTIO_F_VERSION_1 |
			    1 << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE,
		.config = &vmm->devices.hotplug.config,
		.config_size = sizeof(vmm->devices.hotplug.config),
		.serve = serve,
	};
}
