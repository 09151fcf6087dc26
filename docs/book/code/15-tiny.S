// ANCHOR: all
// A kernel of a few lines in the form of a bzImage. It prints a line to COM1, and resets the machine.
.intel_syntax noprefix
.code64
.globl _start
_start:
    // The boot sector and one setup sector. Only the fields that a 64-bit loader reads have values.
.org 0x1f1
    .byte 1                     // setup_sects: sectors after the boot sector
.org 0x1f4
    .long (0x680 - 0x400) / 16  // syssize: the length of the kernel in units of 16 bytes
.org 0x1fe
    .word 0xaa55                // boot_flag
    .word 0x6aeb                // jump: the header ends at 0x202 + 0x6a
    .ascii "HdrS"               // header
    .word 0x20f                 // version: 2.15
.org 0x211
    .byte 1                     // loadflags: LOADED_HIGH, the kernel is for 1 MiB
.org 0x214
    .long 0x100000              // code32_start
.org 0x22c
    .long 0x7fffffff            // initrd_addr_max
    .long 0x200000              // kernel_alignment
    .byte 1, 21                 // relocatable_kernel, min_alignment
    .word 1                     // xloadflags: XLF_KERNEL_64, there is a 64-bit entry
    .long 255                   // cmdline_size
.org 0x258
    .quad 0x100000              // pref_address
    .long 0x10000               // init_size

    // The kernel, from here on at 1 MiB. Its first 0x200 bytes are for the 32-bit entry, which this one lacks.
.org 0x400
    hlt
.org 0x600
    lea rbx, [rip + text]
next:
    mov dx, 0x3fd
    in al, dx                   // the line status register of COM1
    test al, 0x20
    jz next
    mov al, [rbx]
    inc rbx
    test al, al
    jz end
    mov dx, 0x3f8
    out dx, al
    jmp next
end:
    mov al, 0xfe
    out 0x64, al
    hlt
text:
    .asciz "Hello from a kernel of 40 lines\n"
.org 0x680
// ANCHOR_END: all
