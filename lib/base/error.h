/* SPDX-License-Identifier: MIT */
/*
 * error: the sentence behind an errno.
 *
 * Each thread keeps the sentence of its last failure, which gmem_last_error()
 * returns. A function that fails formats its sentence where the numbers are known
 * and returns the result of gmem_fail() in one statement.
 */
#ifndef GMEM_ERROR_H
#define GMEM_ERROR_H

/* Bytes of a sentence with its end; longer ones are cut */
#define GMEM_SENTENCE_SIZE 512

/* Stores the sentence for this thread. Returns @err, a negative errno. */
int gmem_fail(int err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Copies this thread's sentence, to give it to gmem_fail() again after other calls. */
void gmem_error_keep(char sentence[GMEM_SENTENCE_SIZE]);

/* Returns the name of a negative errno, such as "EINVAL". */
const char *gmem_errno_name(int err);

#endif
