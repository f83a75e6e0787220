/* SPDX-License-Identifier: MIT */
/* Runs every file of a directory through the fuzz target, without a fuzzer. Speaks TAP. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#define MAX_BYTES 65536

static int is_file(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

/* Bytes read, or -1 */
static long read_file(const char *dir, const char *name, uint8_t *buf)
{
	char path[4096];
	size_t size;
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	file = fopen(path, "rb");
	if (!file)
		return -1;
	size = fread(buf, 1, MAX_BYTES, file);
	fclose(file);
	return (long)size;
}

/* The target aborts if something is wrong: then the plan is not fulfilled. */
static int replay(const char *dir, const char *name, int number)
{
	uint8_t *buf = malloc(MAX_BYTES);
	long size = buf ? read_file(dir, name, buf) : -1;

	if (size >= 0) {
		/* its exact size, so that reading past it is noticed */
		uint8_t *input = malloc((size_t)size + !size);

		if (input) {
			memcpy(input, buf, (size_t)size);
			LLVMFuzzerTestOneInput(input, (size_t)size);
		}
		free(input);
	}
	free(buf);
	printf("%s %d - %s\n", size < 0 ? "not ok" : "ok", number, name);
	fflush(stdout);
	return size < 0;
}

int main(int argc, char **argv)
{
	struct dirent **entries;
	int i, count, failed = 0;

	count = argc == 2 ? scandir(argv[1], &entries, is_file, alphasort) : -1;
	if (count <= 0) {
		printf("Bail out! usage: replay DIRECTORY, with files in it\n");
		return 1;
	}

	printf("1..%d\n", count);
	fflush(stdout);
	for (i = 0; i < count; i++) {
		failed |= replay(argv[1], entries[i]->d_name, i + 1);
		free(entries[i]);
	}
	free(entries);
	return failed;
}
