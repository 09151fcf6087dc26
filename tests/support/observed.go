// A VMM in Go for the tests of `vmm observe`: it makes its system calls itself, without a C library.
//
// Its 16-bit guest writes 1000 bytes to port 0x42, and halts. Several goroutines allocate memory meanwhile, so that the
// garbage collector interrupts all threads with signals.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const (
	createVM       = 0xae01
	mmapSize       = 0xae04
	createVCPU     = 0xae41
	setMemory      = 0x4020ae46
	run            = 0xae80
	setRegs        = 0x4090ae82
	getSregs       = 0x8138ae83
	setSregs       = 0x4138ae84
	exitIO         = 2
	exitHlt        = 5
	guestSize      = 0x10000
	rip, rflags    = 128, 136
	csBase         = 0
	csSelector     = 12
	exitReason     = 8
	sizeOfRegs     = 144
	sizeOfSregs    = 312
	protection     = syscall.PROT_READ | syscall.PROT_WRITE
	outs           = 1000
	goroutineCount = 4
)

func ioctl(fd, request, argument uintptr) uintptr {
	for {
		result, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, request, argument)
		if errno == 0 {
			return result
		}
		if errno != syscall.EINTR && errno != syscall.EAGAIN {
			fmt.Printf("request %#x: %v\n", request, errno)
			os.Exit(1)
		}
	}
}

func main() {
	var done atomic.Bool
	for i := 0; i < goroutineCount; i++ {
		go func() {
			for !done.Load() {
				_ = make([]byte, 1<<16)
				runtime.Gosched()
			}
		}()
	}
	kvm, err := syscall.Open("/dev/kvm", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	vm := ioctl(uintptr(kvm), createVM, 0)
	ram, err := syscall.Mmap(-1, 0, guestSize, protection, syscall.MAP_SHARED|syscall.MAP_ANON)
	if err != nil {
		os.Exit(1)
	}
	// mov cx, outs; out 0x42, al; loop; hlt
	copy(ram[0x1000:], []byte{0xb9, outs & 0xff, outs >> 8, 0xe6, 0x42, 0xe2, 0xfc, 0xf4})
	region := struct {
		slot, flags            uint32
		start, size, userspace uint64
	}{size: guestSize, userspace: uint64(uintptr(unsafe.Pointer(&ram[0])))}
	ioctl(vm, setMemory, uintptr(unsafe.Pointer(&region)))
	vcpu := ioctl(vm, createVCPU, 0)
	var sregs [sizeOfSregs]byte
	ioctl(vcpu, getSregs, uintptr(unsafe.Pointer(&sregs)))
	binary.LittleEndian.PutUint64(sregs[csBase:], 0)
	binary.LittleEndian.PutUint16(sregs[csSelector:], 0)
	ioctl(vcpu, setSregs, uintptr(unsafe.Pointer(&sregs)))
	var regs [sizeOfRegs]byte
	binary.LittleEndian.PutUint64(regs[rip:], 0x1000)
	binary.LittleEndian.PutUint64(regs[rflags:], 2)
	ioctl(vcpu, setRegs, uintptr(unsafe.Pointer(&regs)))
	page, err := syscall.Mmap(int(vcpu), 0, int(ioctl(uintptr(kvm), mmapSize, 0)), protection, syscall.MAP_SHARED)
	if err != nil {
		os.Exit(1)
	}
	exits := 0
	for {
		ioctl(vcpu, run, 0)
		exits++
		if reason := binary.LittleEndian.Uint32(page[exitReason:]); reason == exitHlt {
			break
		} else if reason != exitIO {
			fmt.Println("exit reason", reason)
			os.Exit(1)
		}
	}
	done.Store(true)
	fmt.Println(exits, "exits")
}
