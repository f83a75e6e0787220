/* SPDX-License-Identifier: MIT */
#include "transfer/chain.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "gmem.h"
#include "base/error.h"
#include "os/sys.h"
#include "transfer/file_queue.h"
#include "transfer/transfer.h"

/* Records looked at in one step */
#define LOOK_STEP 64

/* ---- files ---- */

static int add_file(struct gmem_chain *chain, const struct gmem_transfer_opts *opts, int fd)
{
	struct gmem_io_params *params = &chain->files[chain->count];
	int err = gmem_transfer_inspect(opts, fd, false, opts->image_offset, params);

	if (err)
		return err;
	if (!params->kind.has_offsets && (opts->parent_count || opts->flags & GMEM_TRANSFER_VERIFY))
		return gmem_fail(-ESPIPE, "fd %d can be read only once: it cannot be %s", fd,
				 opts->parent_count ? "part of a chain" : "verified first");
	params->whole = true;
	params->end = params->kind.has_size ? params->kind.size : UINT64_MAX;
	if (params->end < params->position)
		params->end = params->position;
	chain->count++;
	return 0;
}

int gmem_chain_new(struct gmem_chain *chain, const struct gmem_transfer_opts *opts, int fd)
{
	int err = 0;

	*chain = (struct gmem_chain){
		.files = calloc((size_t)opts->parent_count + 1, sizeof(*chain->files)),
	};
	if (!chain->files)
		return gmem_fail(-ENOMEM, "no memory for %" PRIu32 " parents", opts->parent_count);
	for (uint32_t i = 0; i < opts->parent_count && !err; i++)
		err = add_file(chain, opts, opts->parents[i]);
	if (!err)
		err = add_file(chain, opts, fd);
	if (!err)
		gmem_chain_rewind(chain);
	return err;
}

void gmem_chain_free(struct gmem_chain *chain)
{
	free(chain->files);
	free(chain->ends);
}

void gmem_chain_rewind(struct gmem_chain *chain)
{
	chain->file = 0;
	chain->has_before = false;
	chain->entered = 0;
	chain->at = chain->files[0].position;
	chain->number = 0;
}

const struct gmem_io_params *gmem_chain_file(const struct gmem_chain *chain)
{
	return &chain->files[chain->file];
}

/* ---- heads ---- */

static int fail_link(const struct gmem_chain *chain, const struct gmem_image_origin *origin)
{
	if (!origin->parent)
		return gmem_fail(-ENOLINK, "fd %d: image 0x%" PRIx64 " is based on no other, and should be on 0x%"
				 PRIx64 " of generation %" PRIu64 ", which comes before it",
				 gmem_chain_file(chain)->fd, origin->id, chain->id, chain->generation);
	return gmem_fail(-ENOLINK, "fd %d: image 0x%" PRIx64 " of generation %" PRIu64 " is based on 0x%" PRIx64
			 ", and what comes before it is 0x%" PRIx64 " of generation %" PRIu64,
			 gmem_chain_file(chain)->fd, origin->id, origin->generation, origin->parent, chain->id,
			 chain->generation);
}

int gmem_chain_enter(struct gmem_chain *chain, const struct gmem_image_origin *origin)
{
	if (!chain->has_before && origin->parent && !chain->may_begin_inside)
		return gmem_fail(-ENOLINK, "fd %d: image 0x%" PRIx64 " of generation %" PRIu64 " is based on 0x%"
				 PRIx64 ", which is not given: it can only be restored together with all that "
				 "it is based on", gmem_chain_file(chain)->fd, origin->id, origin->generation,
				 origin->parent);
	/* What was merged lies between them: it has the identity of its last image. */
	if (chain->has_before && (origin->parent != chain->id || origin->generation <= chain->generation))
		return fail_link(chain, origin);
	chain->has_before = true;
	chain->id = origin->id;
	chain->generation = origin->generation;
	chain->entered++;
	return 0;
}

bool gmem_chain_is_last(const struct gmem_chain *chain, const struct gmem_image_origin *origin)
{
	return !(origin->flags & IMAGE_FOLLOWED) && chain->file == chain->count - 1;
}

/* ---- the look at all heads ---- */

static int read_block(const struct gmem_chain *chain, char *block)
{
	const struct gmem_io_params *file = gmem_chain_file(chain);
	uint64_t done = 0;
	int64_t n;

	while (done < IMAGE_BLOCK) {
		n = gmem_sys_read_at(file->fd, block + done, IMAGE_BLOCK - done, chain->at + done);
		if (n < 0 && n != -EINTR)
			return gmem_fail((int)n, "reading fd %d at 0x%" PRIx64 ": %s", file->fd, chain->at,
					 gmem_errno_name((int)n));
		if (n == 0)
			return gmem_fail(-ENODATA, "fd %d ends at 0x%" PRIx64 ", where an image should go on%s",
					 file->fd, chain->at + done,
					 chain->has_before ? ", or another one follow" : "");
		done += n > 0 ? (uint64_t)n : 0;
	}
	return 0;
}

static int skip_record(struct gmem_chain *chain, const struct image_record *record)
{
	if (record->size < IMAGE_BLOCK || record->size % IMAGE_BLOCK || record->size > IMAGE_UNIT)
		return gmem_image_bad(chain->number, "it cannot have 0x%" PRIx32 " bytes", record->size);
	chain->at += record->size;
	chain->number++;
	return 0;
}

static int make_room(struct gmem_chain *chain)
{
	size_t room = chain->end_room ? 2 * chain->end_room : 64;
	uint64_t *ends;

	if (chain->end_count < chain->end_room)
		return 0;
	ends = realloc(chain->ends, room * sizeof(*ends));
	if (!ends)
		return gmem_fail(-ENOMEM, "no memory for the ends of %zu images", room);
	chain->ends = ends;
	chain->end_room = room;
	return 0;
}

uint64_t gmem_chain_end(const struct gmem_chain *chain, size_t number)
{
	return number < chain->end_count ? chain->ends[number] : UINT64_MAX;
}

/* The head of an image: behind it is the rest of it, if another one follows, or another file. */
static int look_at_head(struct gmem_chain *chain, const struct image_record *record, bool *ret_all)
{
	/* The image before this one in the file ends here, one in another file with that. */
	uint64_t end = chain->number ? chain->at : UINT64_MAX;
	struct gmem_image_origin origin;
	int err;

	err = gmem_image_check_beginning(chain->at, (const char *)record, IMAGE_BLOCK);
	if (!err)
		err = gmem_image_read_origin(record, &origin);
	if (!err)
		err = make_room(chain);
	if (!err)
		err = gmem_chain_enter(chain, &origin);
	if (err)
		return err;

	if (chain->entered > 1)
		chain->ends[chain->end_count++] = end;
	chain->number = 0;
	chain->image = chain->at;
	*ret_all = gmem_chain_is_last(chain, &origin);
	if (*ret_all)
		return 0;
	if (origin.flags & IMAGE_FOLLOWED)
		return skip_record(chain, record);
	chain->file++;
	chain->at = gmem_chain_file(chain)->position;
	return 0;
}

static int look_at(struct gmem_chain *chain, char *block, bool *ret_all)
{
	const struct image_record *record = (const void *)block;
	enum image_kind kind;
	int err = read_block(chain, block);

	if (err)
		return err;
	kind = gmem_image_kind(record->kind);
	if (chain->number == 0 || kind == IMAGE_HEAD)
		return look_at_head(chain, record, ret_all);
	if (kind != IMAGE_PART || record->id != chain->id || record->number != chain->number)
		return gmem_image_bad(chain->number, "it is another image's");
	return skip_record(chain, record);
}

int gmem_chain_look(struct gmem_chain *chain, void *block, bool *ret_all)
{
	int err = 0;

	*ret_all = false;
	for (unsigned int i = 0; i < LOOK_STEP && !err && !*ret_all; i++)
		err = look_at(chain, block, ret_all);
	chain->has_looked = *ret_all;
	return err;
}
