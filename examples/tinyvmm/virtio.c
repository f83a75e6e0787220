/* SPDX-License-Identifier: MIT */
/*
 * virtio over MMIO (virtio 1.2, 4.2.2), one split queue for each device.
 *
 * The queue is in guest memory, and the guest changes it meanwhile. So indices are
 * loaded with acquire and stored with sequential consistency, and everything else
 * is accessed in between. The guest can write anything there: libgmem refuses
 * addresses that are not memory, and then the device needs a reset, while this
 * program goes on.
 */
#include <errno.h>
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <string.h>

#include "tinyvmm.h"

#define QUEUE_MAX 64
#define VENDOR 0x4d454d47	/* "GMEM" */

static void update_irq(struct vmm *vmm, unsigned int number)
{
	set_irq(vmm, VIRTIO_IRQ + number, vmm->devices.virtio[number].interrupt_status != 0);
}

static void interrupt(struct vmm *vmm, unsigned int number, uint32_t why)
{
	vmm->devices.virtio[number].interrupt_status |= why;
	update_irq(vmm, number);
}

void virtio_config_changed(struct vmm *vmm, enum virtio_number number)
{
	vmm->devices.virtio[number].generation++;
	if (vmm->devices.virtio[number].status & VIRTIO_CONFIG_S_DRIVER_OK)
		interrupt(vmm, number, VIRTIO_MMIO_INT_CONFIG);
}

/* ---- the queue ---- */

/* Reads the chain that begins with descriptor @index. */
static int read_chain(struct vmm *vmm, const struct virtio_state *v, uint64_t index,
		      struct virtio_chain *ret)
{
	struct vring_desc descriptor;
	int error;

	*ret = (struct virtio_chain){ 0 };
	for (;;) {
		if (index >= v->queue_size || ret->count == v->queue_size)
			return -EINVAL;
		error = gmem_view_read(vmm->view, v->descriptors + index * sizeof(descriptor),
				       &descriptor, sizeof(descriptor), NULL);
		if (error < 0)
			return error;
		if (descriptor.flags & VRING_DESC_F_INDIRECT)
			return -EINVAL;
		if (!(descriptor.flags & VRING_DESC_F_WRITE)) {
			if (ret->readable != ret->count)
				return -EINVAL;
			ret->readable++;
		}
		ret->buffers[ret->count].gpa = descriptor.addr;
		ret->buffers[ret->count++].size = descriptor.len;
		if (!(descriptor.flags & VRING_DESC_F_NEXT))
			return 0;
		index = descriptor.next;
	}
}

/* Returns the chain that starts at @head to the driver, with @written bytes in it. */
static int put_used(struct vmm *vmm, struct virtio_state *v, uint64_t head, uint32_t written)
{
	const struct vring_used_elem element = { .id = (uint32_t)head, .len = written };
	const uint64_t at = v->used + 4 + v->next_used % v->queue_size * sizeof(element);
	int error;

	error = gmem_view_write(vmm->view, at, &element, sizeof(element), NULL);
	if (error < 0)
		return error;
	v->next_used++;
	/* Pairs with the driver's read barrier, and precedes the load of its flags below. */
	return gmem_view_store(vmm->view, v->used + 2, 2, GMEM_SEQ_CST, v->next_used);
}

/* Returns 1 if a chain was served, 0 if there is none, or -errno. */
static int serve_one(struct vmm *vmm, unsigned int number)
{
	struct virtio_state *v = &vmm->devices.virtio[number];
	struct virtio_chain chain;
	uint64_t available, head;
	int64_t written;
	int error;

	/* Pairs with the driver's write barrier: the descriptors are written before the index. */
	error = gmem_view_load(vmm->view, v->available + 2, 2, GMEM_ACQUIRE, &available);
	if (error < 0)
		return error;
	if (available == v->next_available)
		return 0;
	error = gmem_view_load(vmm->view, v->available + 4 + v->next_available % v->queue_size * 2u,
			       2, GMEM_RELAXED, &head);
	if (error < 0)
		return error;
	error = read_chain(vmm, v, head, &chain);
	if (error < 0)
		return error;
	written = vmm->virtio[number].serve(vmm, &chain);
	if (written < 0)
		return (int)written;
	v->next_available++;
	error = put_used(vmm, v, head, (uint32_t)written);
	return error < 0 ? error : 1;
}

static void serve_queue(struct vmm *vmm, unsigned int number)
{
	struct virtio_state *v = &vmm->devices.virtio[number];
	uint64_t flags = 0;
	int served;

	if (!v->queue_ready || v->status & VIRTIO_CONFIG_S_NEEDS_RESET)
		return;
	while ((served = serve_one(vmm, number)) > 0)
		;
	if (!served)
		served = gmem_view_load(vmm->view, v->available, 2, GMEM_SEQ_CST, &flags);
	if (served < 0) {
		say("virtio device %u is broken: its queue is malformed: %s", number,
		    strerror(-served));
		v->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
		interrupt(vmm, number, VIRTIO_MMIO_INT_CONFIG);
	} else if (!(flags & VRING_AVAIL_F_NO_INTERRUPT)) {
		interrupt(vmm, number, VIRTIO_MMIO_INT_VRING);
	}
}

/* ---- the registers ---- */

static uint32_t read_register(struct vmm *vmm, unsigned int number, uint64_t reg)
{
	const struct virtio_device *device = &vmm->virtio[number];
	const struct virtio_state *v = &vmm->devices.virtio[number];

	switch (reg) {
	case VIRTIO_MMIO_MAGIC_VALUE:
		return 0x74726976;	/* "virt" */
	case VIRTIO_MMIO_VERSION:
		return 2;
	case VIRTIO_MMIO_DEVICE_ID:
		return device->id;	/* 0: nothing here */
	case VIRTIO_MMIO_VENDOR_ID:
		return VENDOR;
	case VIRTIO_MMIO_DEVICE_FEATURES:
		return v->features_select < 2 ?
			(uint32_t)(device->features >> 32 * v->features_select) : 0;
	case VIRTIO_MMIO_QUEUE_NUM_MAX:
		return QUEUE_MAX;
	case VIRTIO_MMIO_QUEUE_READY:
		return v->queue_ready;
	case VIRTIO_MMIO_INTERRUPT_STATUS:
		return v->interrupt_status;
	case VIRTIO_MMIO_STATUS:
		return v->status;
	case VIRTIO_MMIO_CONFIG_GENERATION:
		return v->generation;
	default:
		return 0;
	}
}

static void set_half(uint64_t *number, bool high, uint32_t value)
{
	*number = high ? (*number & UINT32_MAX) | (uint64_t)value << 32 :
			 (*number & ~(uint64_t)UINT32_MAX) | value;
}

static void set_status(struct vmm *vmm, unsigned int number, uint32_t value)
{
	struct virtio_state *v = &vmm->devices.virtio[number];

	if (!value)
		*v = (struct virtio_state){ .generation = v->generation };
	else if (value & VIRTIO_CONFIG_S_FEATURES_OK &&
		 v->driver_features & ~vmm->virtio[number].features)
		v->status = value & ~(uint32_t)VIRTIO_CONFIG_S_FEATURES_OK;
	else
		v->status = value;
	update_irq(vmm, number);
}

static void write_register(struct vmm *vmm, unsigned int number, uint64_t reg, uint32_t value)
{
	struct virtio_state *v = &vmm->devices.virtio[number];

	switch (reg) {
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
		v->features_select = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
		v->driver_features_select = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES:
		if (v->driver_features_select < 2)
			set_half(&v->driver_features, v->driver_features_select, value);
		break;
	case VIRTIO_MMIO_QUEUE_NUM:
		if (!v->queue_ready)
			v->queue_size = value <= QUEUE_MAX ? value : 0;
		break;
	case VIRTIO_MMIO_QUEUE_READY:
		v->queue_ready = value == 1 && v->queue_size;
		break;
	case VIRTIO_MMIO_QUEUE_NOTIFY:
		serve_queue(vmm, number);
		break;
	case VIRTIO_MMIO_INTERRUPT_ACK:
		v->interrupt_status &= ~value;
		update_irq(vmm, number);
		break;
	case VIRTIO_MMIO_STATUS:
		set_status(vmm, number, value);
		break;
	case VIRTIO_MMIO_QUEUE_DESC_LOW:
	case VIRTIO_MMIO_QUEUE_DESC_HIGH:
		set_half(&v->descriptors, reg == VIRTIO_MMIO_QUEUE_DESC_HIGH, value);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
	case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
		set_half(&v->available, reg == VIRTIO_MMIO_QUEUE_AVAIL_HIGH, value);
		break;
	case VIRTIO_MMIO_QUEUE_USED_LOW:
	case VIRTIO_MMIO_QUEUE_USED_HIGH:
		set_half(&v->used, reg == VIRTIO_MMIO_QUEUE_USED_HIGH, value);
		break;
	}
}

void virtio_mmio_write(struct vmm *vmm, uint64_t gpa, uint32_t value)
{
	const unsigned int number = (unsigned int)((gpa - VIRTIO_BASE) / VIRTIO_PAGE);

	if (vmm->virtio[number].id)
		write_register(vmm, number, gpa % VIRTIO_PAGE, value);
}

void virtio_mmio_read(struct vmm *vmm, uint64_t gpa, uint8_t *bytes, uint32_t size)
{
	const unsigned int number = (unsigned int)((gpa - VIRTIO_BASE) / VIRTIO_PAGE);
	const struct virtio_device *device = &vmm->virtio[number];
	const uint64_t reg = gpa % VIRTIO_PAGE;
	uint32_t value;

	memset(bytes, 0, size);
	if (reg < VIRTIO_MMIO_CONFIG) {
		value = read_register(vmm, number, reg);
		memcpy(bytes, &value, size < sizeof(value) ? size : sizeof(value));
	} else if (reg - VIRTIO_MMIO_CONFIG + size <= device->config_size) {
		memcpy(bytes, (const uint8_t *)device->config + reg - VIRTIO_MMIO_CONFIG, size);
	}
}
