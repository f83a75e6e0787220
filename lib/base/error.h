/* SPDX-License-Identifier: MIT */
/*
 * error: the sentence behind an errno.
 *
 * Each thread keeps the sentence of its last failure, which gmem_last_error()
 * returns. A function that fails formats its sentence where the numbers are known
 * and returns the result of gmem_fail() in one statement.
 *
 * A caller gets a code and the sentence of that same failure. A function that does
 * something after a failure which can fail, too, such as undoing or telling others, keeps
 * the failure and restores it. The unit tests compare code and sentence of every refusal.
 */
#ifndef GMEM_ERROR_H
#define GMEM_ERROR_H

#include <stdint.h>

/* Bytes of a sentence with its end; longer ones are cut */
#define GMEM_SENTENCE_SIZE 512

/*
 * Stores the sentence for this thread, with "?" for each character that could do something
 * to a terminal. Returns @err, a negative errno.
 */
int gmem_fail(int err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * The same for lookups that often find nothing: the sentence is @before, @number in
 * hexadecimal and @after, and is written only if it is asked for. Both texts live for ever.
 */
int gmem_fail_at(int err, const char *before, uint64_t number, const char *after);

/* Returns the errno that belongs to this thread's sentence; 0 before the first failure. */
int gmem_error_of_sentence(void);

/* In debug builds abort if the last sentence is that of another errno: a program error. */
#ifdef GMEM_LOCK_CHECKS
void gmem_error_check(int err);
#else
static inline void gmem_error_check(int err)
{
	(void)err;
}
#endif

/* A failure, or success, that is put aside while something else may fail */
struct gmem_failure {
	int err;
	char sentence[GMEM_SENTENCE_SIZE];
};

/* @err is 0, or what the last gmem_fail() returned. */
void gmem_failure_keep(struct gmem_failure *failure, int err);
/* Returns @err, with its sentence. */
int gmem_failure_restore(const struct gmem_failure *failure);

/* Returns the name of a negative errno, such as "EINVAL". */
const char *gmem_errno_name(int err);

/* Writes a size of a page as people say it: "2 MiB". */
#define GMEM_SIZE_TEXT 24
void gmem_size_text(uint64_t bytes, char text[GMEM_SIZE_TEXT]);

#endif
