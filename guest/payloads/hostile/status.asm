; Writes a driver status that the protocol does not define.
%include "driver.inc"
    begin
    reset
    mov byte [rdi + 7], 6
    finish
