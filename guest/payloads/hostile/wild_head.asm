; Publishes a head that is outside the queue.
%include "driver.inc"
    begin
    reset
    mov dword [rdi + 0x10], 0x7FFFFFFF
    finish
