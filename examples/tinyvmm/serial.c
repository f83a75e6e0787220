/* SPDX-License-Identifier: MIT */
/* A 16550A serial port. It writes each byte to standard output at once. */
#include <errno.h>
#include <linux/serial_reg.h>
#include <unistd.h>

#include "tinyvmm.h"

static bool has_data(const struct serial_state *s)
{
	return s->received_from != s->received_to;
}

/* The pending interrupt, as a value of UART_IIR */
static uint8_t cause(const struct serial_state *s)
{
	if (s->interrupt_enable & UART_IER_RDI && has_data(s))
		return UART_IIR_RDI;
	if (s->interrupt_enable & UART_IER_THRI && s->transmit_pending)
		return UART_IIR_THRI;
	return UART_IIR_NO_INT;
}

static void update_irq(struct vmm *vmm)
{
	set_irq(vmm, SERIAL_IRQ, cause(&vmm->devices.serial) != UART_IIR_NO_INT);
}

static void transmit(struct serial_state *s, uint8_t byte)
{
	if (s->modem_control & UART_MCR_LOOP)
		return;
	while (write(STDOUT_FILENO, &byte, 1) < 0 && errno == EINTR)
		;
	s->transmit_pending = 1;
}

void serial_out(struct vmm *vmm, uint16_t port, uint8_t value)
{
	struct serial_state *s = &vmm->devices.serial;
	const unsigned int reg = port - SERIAL_PORT;

	if (reg < 2 && s->line_control & UART_LCR_DLAB) {
		s->divisor[reg] = value;
		return;
	}
	switch (reg) {
	case UART_TX:
		transmit(s, value);
		break;
	case UART_IER:
		/* Enabling this interrupt while the transmitter is empty raises it. */
		if (value & ~s->interrupt_enable & UART_IER_THRI)
			s->transmit_pending = 1;
		s->interrupt_enable = value & 0xf;
		break;
	case UART_FCR:
		s->fifo_control = value & UART_FCR_ENABLE_FIFO;
		if (value & UART_FCR_CLEAR_RCVR)
			s->received_from = s->received_to;
		break;
	case UART_LCR:
		s->line_control = value;
		break;
	case UART_MCR:
		s->modem_control = value & 0x1f;
		break;
	case UART_SCR:
		s->scratch = value;
		break;
	}
	update_irq(vmm);
}

static uint8_t receive_byte(struct vmm *vmm)
{
	struct serial_state *s = &vmm->devices.serial;

	if (!has_data(s))
		return 0;
	pthread_cond_broadcast(&vmm->room);
	return s->received[s->received_from++ % sizeof(s->received)];
}

/* In loopback mode the outputs are the inputs. */
static uint8_t modem_status(const struct serial_state *s)
{
	const uint8_t control = s->modem_control;

	if (!(control & UART_MCR_LOOP))
		return UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS;
	return (uint8_t)((control & UART_MCR_RTS ? UART_MSR_CTS : 0) |
			 (control & UART_MCR_DTR ? UART_MSR_DSR : 0) |
			 (control & UART_MCR_OUT1 ? UART_MSR_RI : 0) |
			 (control & UART_MCR_OUT2 ? UART_MSR_DCD : 0));
}

static uint8_t read_register(struct vmm *vmm, unsigned int reg)
{
	struct serial_state *s = &vmm->devices.serial;
	uint8_t value;

	if (reg < 2 && s->line_control & UART_LCR_DLAB)
		return s->divisor[reg];
	switch (reg) {
	case UART_RX:
		return receive_byte(vmm);
	case UART_IER:
		return s->interrupt_enable;
	case UART_IIR:
		value = cause(s);
		if (value == UART_IIR_THRI)
			s->transmit_pending = 0;
		return value | (s->fifo_control ? 0xc0 : 0);
	case UART_LCR:
		return s->line_control;
	case UART_MCR:
		return s->modem_control;
	case UART_LSR:
		return UART_LSR_TEMT | UART_LSR_THRE | (has_data(s) ? UART_LSR_DR : 0);
	case UART_MSR:
		return modem_status(s);
	default:
		return s->scratch;
	}
}

uint8_t serial_in(struct vmm *vmm, uint16_t port)
{
	const uint8_t value = read_register(vmm, port - SERIAL_PORT);

	update_irq(vmm);
	return value;
}

size_t serial_room(struct vmm *vmm)
{
	struct serial_state *s = &vmm->devices.serial;

	return sizeof(s->received) - (s->received_to - s->received_from);
}

void serial_receive(struct vmm *vmm, const uint8_t *bytes, size_t count)
{
	struct serial_state *s = &vmm->devices.serial;

	while (count--)
		s->received[s->received_to++ % sizeof(s->received)] = *bytes++;
	update_irq(vmm);
}
