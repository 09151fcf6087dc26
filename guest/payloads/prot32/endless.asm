; Never ends: jumps to itself with interrupts off.
bits 32
section .start exec
    cli
    jmp $
