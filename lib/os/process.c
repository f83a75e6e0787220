/* SPDX-License-Identifier: MIT */
#include "os/process.h"

#include <stddef.h>
#include <sys/mman.h>

#include "os/sys.h"

/* Linux 4.14, which some C libraries do not define. */
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

/* The kernel maps and wipes whole pages. */
#define SIZE sizeof(uint32_t)

void gmem_process_begin(struct gmem_process *process)
{
	void *page;

	*process = (struct gmem_process){ .last = 1, .pid = gmem_sys_pid() };
	if (gmem_sys_mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &page))
		return;
	if (gmem_sys_madvise(page, SIZE, MADV_WIPEONFORK)) {
		gmem_sys_munmap(page, SIZE);
		return;
	}
	process->number = page;
	*process->number = process->last;
}

void gmem_process_end(struct gmem_process *process)
{
	if (process->number)
		gmem_sys_munmap(process->number, SIZE);
	process->number = NULL;
}

uint32_t gmem_process_number(struct gmem_process *process)
{
	pid_t pid;

	if (process->number) {
		if (!*process->number)
			*process->number = ++process->last;
		return *process->number;
	}
	pid = gmem_sys_pid();
	if (pid != process->pid) {
		process->pid = pid;
		process->last++;
	}
	return process->last;
}
