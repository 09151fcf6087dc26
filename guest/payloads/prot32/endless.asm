; Never ends: interrupts off, a jump to itself.
bits 32
section .start exec
    cli
    jmp $
