; Never ends: interrupts off, a jump to itself.
bits 64
section .start exec
    cli
    jmp $
