/* SPDX-License-Identifier: MIT */
/* What a few lines of C in the documentation may take for granted */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/kvm.h>

#include <gmem.h>

extern int kvm_fd, vm_fd, vcpu_fd, gmemfd, fd, ret;
extern struct gmem_caps *caps;
extern struct gmem_plan *plan;
extern struct gmem_file *file;
extern struct gmem_vm *vm;
extern struct gmem_region *region, *ram;
extern struct gmem_change *change;
extern struct gmem_view *view;
extern uint64_t gpa, size, offset, done;
extern void *hva, *buf;
