// Puts the guests into the program, as a table of structures: name, start, end.
    .macro guest name
    .section .rodata
10: .asciz "\name"
11: .incbin "guests/\name\().bin"
12:
    .section .data.rel.ro, "aw", @progbits
    .quad 10b, 11b, 12b
    .endm

    .section .data.rel.ro, "aw", @progbits
    .balign 8
    .global guests, guests_end
guests:
    guest kev-port
    guest kev-ports
    guest kev-strings
    guest kev-mmio
    guest kev-cpuid
    guest kev-msr
    guest kev-msr-fault
guests_end:
    .section .note.GNU-stack, "", @progbits
